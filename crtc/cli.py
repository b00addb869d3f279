"""The command line: `crtc COMMAND`, see `crtc --help`; `fit` and `host` are those of LightningCLI."""

import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from jsonargparse import auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from PIL import Image, UnidentifiedImageError

from crtc import __version__, tracking
from crtc.ablation import ablate as run_ablations
from crtc.benchmark import benchmark as run_benchmark
from crtc.demo import demo as run_demo
from crtc.dtypes import Name, resolve, told
from crtc.evaluation import Evaluation
from crtc.evaluation.factorial import COUNTS
from crtc.evaluation.factorial import factorial as run_factorial
from crtc.evaluation.geometries import geometries as run_geometries
from crtc.evaluation.photographs import METHODS, Photographs
from crtc.evaluation.photographs_report import save as save_photographs
from crtc.hosts.classifier import load_classifier
from crtc.hosts.embedded import image_tokens, load_host
from crtc.methods import Method, catalogue, golden, trained
from crtc.methods.inside import DEPTH
from crtc.methods.rows import field, left_out, named, scorers
from crtc.showing import answer, record
from crtc.tasks.glyphs.photographs import Split
from crtc.tasks.labelled import labelled
from crtc.tasks.picture import Glyphs, JsonLines, Picture, Task
from crtc.training.fit import fit, fit_host

Masses = Literal["both", "kept", "plain"]
MASSES: dict[Masses, tuple[bool, ...]] = {"both": (False, True), "kept": (True,), "plain": (False,)}


def demo(folder: str = "runs/demo", steps: int = 100, pictures: int = 48, seed: int = 0, dtype: Name = "auto") -> None:
    """Do the whole job on real input: train a scorer, compare it with the field, draw, log.

    Args:
        folder: of everything that is written; run again, it goes on where it stopped.
        steps: of training.
        pictures: test scenes with 12 questions each.
        seed: of training.
        dtype: of the host; "auto" is the one that is fast on this machine.
    """
    run_demo(folder, steps=steps, pictures=pictures, seed=seed, dtype=dtype)


def evaluate(
    host: str = "embedded",
    data: str | None = None,
    methods: list[str] | None = None,
    scorer: list[str] | str | None = None,
    counts: list[int] | None = None,
    keep: list[float] | float | None = None,
    mass: Masses = "both",
    positions: Literal["keep", "repack"] = "keep",
    split: Split | None = None,
    pictures: int | None = None,
    questions: int | None = None,
    dtype: Name = "auto",
    device: str = "auto",
    batch: int = 4,
    output: str = "runs/evaluate",
) -> None:
    """Measure what methods retain of a host's answers, at matched true counts.

    Args:
        host: the embedded one, or a folder or hub id of a LLaVA.
        data: JSON lines with image, question, answers and optional boxes; glyph scenes without.
        methods: names of the catalogue, "reinforced_scorer blind" among them, settings behind them in brackets, as in
            "reinforced(importance=uniform)"; all that are ready without.
        scorer: folder of a scorer to add, or several; of any method that `crtc fit` trains.
        counts: whole tokens per image; 192, 128, 64, 32, 16 without.
        keep: fractions in the place of counts, or one of them.
        mass: which settings of mass preservation.
        positions: whether kept tokens keep their position ids.
        split: of the glyph scenes; the test split without.
        pictures: glyph scenes; 150 without.
        questions: per glyph scene; 12 without.
        dtype: of the host; "auto" is the one that is fast on the device.
        device: of the host and the methods; "auto" is the GPU if there is one.
        batch: pictures encoded and asked about side by side.
        output: folder of the results.
    """
    tracking.mode()  # refuses before the work, not behind it
    scenes = {"split": split, "pictures": pictures, "questions": questions}
    asked = {name: value for name, value in scenes.items() if value is not None}
    if data is not None and asked:
        raise ValueError(f"data is {data!r} and {asked} are of glyph scenes, expected one of them")
    loaded = _host(host, dtype, device)
    if counts is not None and keep is not None:
        raise ValueError(f"counts is {counts} and keep is {keep}, expected one of them")
    total = image_tokens(loaded[1])
    if keep is not None:
        keep = [keep] if isinstance(keep, float) else keep
        if not all(0 < part <= 1 for part in keep):
            raise ValueError(f"keep is {keep}, expected fractions in (0, 1]")
        counts = [max(1, round(part * total)) for part in keep]
    chosen = [192, 128, 64, 32, 16] if counts is None else counts
    if not chosen:
        raise ValueError("counts and keep are empty, expected at least one number")
    if max(chosen) > total or min(chosen) < 1:
        raise ValueError(f"counts is {chosen}, expected numbers between 1 and the {total} tokens of an image")
    task: Task = JsonLines(data) if data is not None else Glyphs(**{"pictures": 150, **asked})  # type: ignore[arg-type]
    given = [scorer] if isinstance(scorer, str) else scorer or []
    rows = _rows(methods, given)
    for method in rows.values():
        method.to(loaded[0].device)
    results = Evaluation(
        loaded,
        task,
        rows,
        counts=sorted(set(chosen), reverse=True),
        masses=MASSES[mass],
        positions=positions,
        batch=batch,
        skipped=left_out(list(rows)) if methods is None else {},
    ).run(output)
    folders = [one for one in given if Path(one).is_dir()]  # what came from the hub is there already
    print(record(results, loaded, task, rows, output, named=host, scorers=folders))
    print(f"wrote results.json, table.md, questions.npz, curves.png, overlays and a W&B run to {output}")


def _host(name: str, dtype: Name, device: str) -> tuple[Any, Any]:
    """A host and its processor; says which float type it runs in where that was left to the machine."""
    loaded = load_host(name, dtype=resolve(dtype, device), device=device)
    if dtype == "auto":
        print(f"the host runs in {told(device)}")
    return loaded


def _rows(names: list[str] | None, folders: list[str]) -> dict[str, Method]:
    return field(folders) if names is None else {**named(names), **scorers(folders)}


def factorial(
    split: Split = "test",
    pictures: int = 150,
    questions: int = 12,
    counts: list[int] | None = None,
    dtype: Name = "auto",
    device: str = "auto",
    batch: int = 4,
    output: str = "runs/factorial",
) -> None:
    """Compare every importance with every aggregation, with mass and without: what decides?

    Args:
        split: of the glyph scenes.
        pictures: glyph scenes.
        questions: per glyph scene.
        counts: whole tokens per image; 64, 32, 16, 8 without.
        dtype: of the host; "auto" is the one that is fast on this machine.
        device: of the host and the methods; "auto" is the GPU if there is one.
        batch: pictures encoded and asked about side by side.
        output: folder of the results; run again, it goes on where it stopped.
    """
    loaded = load_host(dtype=resolve(dtype, device), device=device)
    chosen = COUNTS if counts is None else sorted(set(counts), reverse=True)
    print(run_factorial(loaded, Glyphs(split, pictures, questions), output, counts=chosen, batch=batch))
    print(f"wrote factorial.json, table.md and heat.png to {output}")


def geometries(
    split: Split = "calibration",
    pictures: int = 100,
    questions: int = 12,
    model: str | None = None,
    data: str | None = None,
    images: int = 2000,
    dtype: Name = "auto",
    device: str = "auto",
    output: str = "runs/geometries",
) -> None:
    """Compare thresholds of the picture's own with fixed ones, on tokens that lie otherwise.

    Args:
        split: of the glyph scenes.
        pictures: glyph scenes.
        questions: per glyph scene.
        model: folder or hub id of a vision transformer with a classification head, whose layers are compared too.
        data: its photographs, as for `classify`.
        images: how many of them.
        dtype: of the host; "auto" is the one that is fast on this machine.
        device: of the host and the methods; "auto" is the GPU if there is one.
        output: folder of the results; run again, it goes on where it stopped.
    """
    if (model is None) != (data is None):
        raise ValueError(f"model is {model!r} and data is {data!r}, expected both or neither")
    loaded = load_host(dtype=resolve(dtype, device), device=device)
    classifier = None if model is None else load_classifier(model, device=device)
    shown = None if classifier is None else labelled(str(data), classifier.label2id, classifier.num_classes)
    task = Glyphs(split, pictures, questions)
    print(run_geometries(loaded, task, output, classifier=classifier, data=shown, images=images))
    print(f"wrote geometries.json and table.md to {output}")


def classify(
    model: str,
    data: str,
    layers: list[int] | None = None,
    counts: list[int] | None = None,
    methods: list[str] | None = None,
    mass: Masses = "kept",
    images: int | None = None,
    batch: int = 25,
    attention: Literal["sdpa", "eager"] = "sdpa",
    device: str = "auto",
    output: str = "runs/classify",
) -> None:
    """Measure what methods retain of an image classifier's accuracy when tokens leave between its layers.

    Args:
        model: folder or hub id of a vision transformer with a classification head.
        data: folder with one folder of images per class, or .npz with bytes, offsets and labels.
        layers: in front of which tokens leave, each by itself; a quarter, half and three quarters up without.
        counts: patch tokens left per image; 50, 25, 10 and 4 % of all without.
        methods: names of the catalogue; a short list without.
        mass: which settings of mass preservation.
        images: how many, drawn at random with a fixed seed; all without.
        batch: images side by side.
        attention: implementation of attention.
        device: of the model and the methods; "auto" is the GPU if there is one.
        output: folder of the results; run again, it goes on where it stopped.
    """
    rows = _rows(list(METHODS) if methods is None else methods, [])
    classifier = load_classifier(model, device=device, attention=attention)
    for method in rows.values():
        method.to(classifier.model.device)
    photographs = Photographs(
        classifier,
        labelled(data, classifier.label2id, classifier.num_classes),
        rows,
        layers=layers,
        counts=counts,
        masses=MASSES[mass],
        images=images,
        batch=batch,
    )
    print(save_photographs(photographs.run(output), output))
    print(f"wrote results.json, table.md, curves.png and images.npz to {output}")


def benchmark(
    methods: list[str] | None = None,
    batch: int = 8,
    tokens: int = 576,
    count: int = 64,
    channels: int = 192,
    repeats: int = 15,
    seed: int = 0,
    output: str = "runs/benchmark",
) -> None:
    """Time planning on the CPU, and batched methods against loops that take one picture at a time.

    Args:
        methods: names of the catalogue; all that are ready without.
        batch: pictures side by side.
        tokens: visual tokens of each.
        count: whole tokens to keep of each.
        channels: of the embedding space; the scorer that ships is for 192.
        repeats: timed runs of each method and each loop, in turn.
        seed: of the made-up pictures.
        output: folder of the results.
    """
    print(
        run_benchmark(
            output,
            methods=methods,
            batch=batch,
            size=tokens,
            count=count,
            channels=channels,
            repeats=repeats,
            seed=seed,
        )
    )
    print(f"wrote benchmark.json and table.md to {output}")


def ablate(
    files: list[str],
    base: str = "configs/ablation/base.yaml",
    folder: str = "runs/ablation",
    host: str = "embedded",
    device: str = "auto",
    dtype: Name = "auto",
) -> None:
    """Run the ablations whose result is missing and print one table.

    Args:
        files: YAML files, each with one change.
        base: what all share.
        folder: of the results.
        host: to train and evaluate on.
        device: to evaluate on; "auto" is the GPU if there is one, which is where scorers are trained anyway.
        dtype: of the host; "auto" is the one that is fast on this machine, and takes results of any that are there.
    """
    print(run_ablations(base, files, folder, host=host, device=device, dtype=dtype))
    print(f"wrote the table to {Path(folder) / 'table.md'}")


def compress(
    image: str,
    prompt: str,
    method: str = "reinforced",
    count: int | None = None,
    keep: float | None = None,
    host: str = "embedded",
    mass: bool = True,
    scorer: str | None = None,
    dtype: Name = "auto",
    device: str = "auto",
    output: str = "overlay.png",
) -> None:
    """Answer a question about an image with and without compression, and draw what stays.

    Args:
        image: file of the image.
        prompt: the question.
        method: name of the catalogue, settings behind it in brackets.
        count: whole tokens to keep; 64 if neither count nor keep is given.
        keep: fraction to keep.
        host: the embedded one, or a folder or hub id of a LLaVA.
        mass: whether kept tokens carry log-sizes.
        scorer: folder of a scorer in the place of the method.
        dtype: of the host; "auto" is the one that is fast on the device.
        device: of the host and the method; "auto" is the GPU if there is one.
        output: file of the overlay.
    """
    loaded = _host(host, dtype, device)
    chosen = trained(scorer) if scorer else named([method])[method]
    if count is None and keep is None:
        count = 64
    shown = answer(
        loaded,
        Picture(_open(image), ()),
        prompt,
        chosen.to(loaded[0].device),
        count=count,
        keep=keep,
        mass=mass,
        path=output,
    )
    print(f"with {shown.tokens} tokens: {shown.full}")
    print(f"with {shown.kept} tokens: {shown.compressed}")
    print(f"wrote {output}")


def show(number: int = 0, split: Split = "test", output: str = "scene.png") -> None:
    """Draw a glyph scene and print its questions and answers.

    Args:
        number: of the scene.
        split: of the scene.
        output: file of the image.
    """
    if number < 0:
        raise ValueError(f"number is {number}, expected at least 0")
    picture = Glyphs(split, number + 1, 12)[number]
    picture.image.resize((576, 576), Image.Resampling.NEAREST).save(output)
    for question in picture.questions:
        print(f"{question.family:9} {question.text} {question.answers[0]}")
    print(f"wrote {output}")


def methods(markdown: bool = False) -> None:
    """List the methods with family, needs, where they act, and source.

    Args:
        markdown: as the table of the README, which says as well how faithful each is to what was published.
    """
    rows: list[tuple[str, ...]] = [("method", "family", "sees question", "needs", "acts", "source")]
    for name, kind in catalogue().items():
        one = kind.for_width(8)
        aware, needs = "yes" if one.question_aware else "no", ", ".join(sorted(one.needs)) or "-"
        rows.append((name, one.family, aware, needs, _acts(one), one.source))
    if markdown:
        rows = [(*row, *more) for row, more in zip(rows, _fidelity(), strict=True)]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        lines.insert(1, "|---" * len(rows[0]) + "|")
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    print("\n".join(lines))


def _acts(method: Method) -> str:
    """Where a method acts here, in a language model of the depth that papers speak of."""
    cuts = method.cuts(DEPTH)
    return f"inside, layer {', '.join(map(str, cuts))} of {DEPTH}" if cuts else "before"


def _fidelity() -> list[tuple[str, ...]]:
    """Head and rows of what the README says beyond the list: how every method relates to its authors' code."""
    compared = golden()
    rows: list[tuple[str, ...]] = [("published to act", "licence of its code", "golden", "deviations")]
    for name, kind in catalogue().items():
        checked = "?" if compared is None else "yes" if name in compared else "no"
        rows.append((kind.place, kind.licence, checked, kind.deviations() or "-"))
    return rows


def _open(path: str) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"image {path!r} cannot be read: {error}") from error


def _spelled_out(given: list[str]) -> list[str]:
    """`methods --markdown`, and `ablate a.yaml b.yaml ...` as a shell expands a pattern, in the form of options."""
    if given[0] == "methods":
        bare = [
            word == "--markdown" and after not in ("true", "false") for word, after in itertools.pairwise([*given, ""])
        ]
        return [f"{word}=true" if alone else word for word, alone in zip(given, bare, strict=True)]
    files = list(itertools.takewhile(lambda word: not word.startswith("-"), given[1:])) if given[0] == "ablate" else []
    if not files:
        return given
    listed = files[0] if len(files) == 1 and files[0].startswith("[") else json.dumps(files)
    return ["ablate", "--files", listed, *given[1 + len(files) :]]


COMMANDS: tuple[Callable[..., None], ...] = (
    demo,
    evaluate,
    factorial,
    geometries,
    classify,
    benchmark,
    ablate,
    compress,
    show,
    methods,
)
TRAINING: dict[str, Callable[[list[str]], None]] = {"fit": fit, "host": fit_host}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a mistake of the user ends with a message and exit code 2."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given == ["--version"]:
            print(__version__)
        elif given and given[0] in TRAINING:
            TRAINING[given[0]](given[1:])
        else:
            about = {command.__name__: command for command in COMMANDS}
            if not given or given[0] in ("-h", "--help"):
                print(
                    __doc__
                    + "\n"
                    + "\n".join(f"  {name:9} {(about[name].__doc__ or '').splitlines()[0]}" for name in about)
                )
                print("  --version")
                print("  fit       Train a scorer through a frozen host (LightningCLI; `crtc fit --help`).")
                print("  host      Train the embedded host anew, one stage (LightningCLI; `crtc host --help`).")
                return
            auto_cli(list(COMMANDS), args=_spelled_out(given), as_positional=False)
    except BrokenPipeError:  # `crtc methods | head`: whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MisconfigurationException) as error:
        print(f"crtc: {error}", file=sys.stderr)
        raise SystemExit(2) from None
