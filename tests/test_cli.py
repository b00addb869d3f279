"""The command line, in this process: what it writes, and that mistakes end with one line and exit code 2."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crtc
from crtc.cli import COMMANDS, TRAINING, main
from crtc.dtypes import fast_dtype
from crtc.hosts.embedded import EMBEDDED
from crtc.methods import LearnPruner, Random, VisionSelector, catalogue, trainable
from crtc.methods.learned import UNREADY
from crtc.methods.reinforced_scorer import ReinforcedScorer
from crtc.tasks.picture import Glyphs

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a command writes by default stays in the test's folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Glyphs("test", 1, 1)[0].image.save(path)
    return path


def asks(folder: Path, **changes: object) -> Path:
    """A data file of two questions about one image."""
    file = folder / "questions.jsonl"
    lines = [
        {"image": "scene.png", "question": "what color is the cross?", "answers": ["red", "blue"]},
        {"image": "scene.png", "question": "how many crosses?", "answer": "1", "boxes": [[0, 0, 64, 64]], **changes},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def test_version(capsys: Output) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"{crtc.__version__}\n"
    assert {"compress", "compressed", "get_method", "trained", "Tokens", "__version__"} <= {*crtc.__all__, *dir(crtc)}


def test_methods(capsys: Output) -> None:
    main(["methods"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(catalogue())
    assert lines[0].split() == ["method", "family", "sees", "question", "needs", "acts", "source"]


def test_methods_as_markdown(capsys: Output) -> None:
    main(["methods", "--markdown", "true"])
    spelled_out = capsys.readouterr().out
    main(["methods", "--markdown"])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert shown == spelled_out
    assert lines[1] == "|---" * 10 + "|"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in cells[2:]] == list(catalogue())
    assert all(len(row) == 10 for row in cells)
    rows = {row[0]: [row[4], *row[6:]] for row in cells[2:]}
    assert rows["tome"][:4] == ["before", "in the encoder", "CC-BY-NC-4.0", "yes"]
    assert rows["pyramid_drop"][:4] == ["inside, layer 8, 16, 24 of 32", "in the language model", "MIT", "yes"]
    assert rows["random"] == ["before", "after the projector", "-", "no", "-"]
    assert rows["div_prune"][4].startswith("distances in float32; ties go to the earlier token")


def test_a_reader_may_stop_reading() -> None:
    said = subprocess.run(
        f"{sys.executable} -c 'from crtc.cli import main; main([\"methods\"])' | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith("method") and "Broken" not in said.stderr


def test_show(tmp_path: Path, capsys: Output) -> None:
    main(["show", "--number", "1", "--output", "drawn.png"])
    said = capsys.readouterr().out.splitlines()
    questions = Glyphs("test", 2, 12)[1].questions
    assert len(said) == 13 and said[-1] == "wrote drawn.png"
    for line, question in zip(said, questions, strict=False):
        assert line.split(maxsplit=1) == [question.family, f"{question.text} {question.answers[0]}"]
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == (576, 576)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--method", "kmeans", "--count", "9"], 9),
        (["--keep", "0.5"], 288),
        (["--method", "Random", "--mass", "false"], 64),
    ],
)
def test_compress(scene: Path, tmp_path: Path, capsys: Output, options: list[str], kept: int) -> None:
    main(["compress", "--image", str(scene), "--prompt", "what color is the cross?", *options])
    told, *said = capsys.readouterr().out.splitlines()
    assert told.startswith("the host runs in ")
    assert said[0].startswith("with 576 tokens: ") and said[1].startswith(f"with {kept} tokens: ")
    assert said[2] == "wrote overlay.png"
    with Image.open(tmp_path / "overlay.png") as drawn:
        assert drawn.size[0] > 1000


def test_compress_with_a_scorer_of_ones_own(scene: Path, tmp_path: Path, capsys: Output) -> None:
    ReinforcedScorer(192, hidden=8, channels=2, metric=4, degree=3).save_pretrained(tmp_path / "scorer")
    main(
        [
            "compress",
            "--image",
            str(scene),
            "--prompt",
            "how many crosses?",
            "--scorer",
            "scorer",
            "--count",
            "5",
            "--output",
            "mine.png",
        ]
    )
    assert "with 5 tokens: " in capsys.readouterr().out and (tmp_path / "mine.png").exists()


def test_evaluate_glyphs(tmp_path: Path, capsys: Output) -> None:
    main(
        [
            "evaluate",
            "--methods",
            "[random, reinforced_scorer blind]",
            "--counts",
            "[16]",
            "--pictures",
            "2",
            "--questions",
            "2",
        ]
    )
    said = capsys.readouterr().out
    assert "| random | no | plain |" in said and "| reinforced_scorer blind | no | kept |" in said
    folder = tmp_path / "runs" / "evaluate"
    content = json.loads((folder / "results.json").read_text())
    assert content["questions"] == 4 and content["config"]["counts"] == [16]
    assert content["config"]["dtype"] == str(fast_dtype())
    assert {row["method"] for row in content["rows"] if row["count"]} == {"random", "reinforced_scorer blind"}
    for name in ("table.md", "questions.npz", "curves.png"):
        assert (folder / name).stat().st_size > 100
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    assert np.load(folder / "questions.npz")["random|mass|16"].shape == (4,)


def test_evaluate_what_cannot_spend_as_little(tmp_path: Path, capsys: Output) -> None:
    """Overlays are of the middle count, which FastV is too dear for."""
    main(["evaluate", "--methods", "[fastv, pool]", "--counts", "[192, 64, 16]", "--pictures", "1", "--questions", "1"])
    assert "| fastv | yes | plain |" in capsys.readouterr().out
    folder = tmp_path / "runs" / "evaluate"
    assert {file.name for file in folder.glob("*.png")} == {"curves.png", "overlay-pool.png"}


def test_evaluate_a_file(scene: Path, tmp_path: Path, capsys: Output) -> None:
    ReinforcedScorer(192, hidden=8, channels=2, metric=4, degree=3).save_pretrained(tmp_path / "scorer")
    options = ["--methods", "[kmeans]", "--scorer", "scorer", "--keep", "0.02", "--mass", "kept", "--output", "out"]
    main(["evaluate", "--data", str(asks(tmp_path)), *options, "--dtype", "float32"])
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["questions"] == 2 and content["pictures"] == 1 and content["config"]["task"] == "questions"
    rows = {(row["method"], row["mass"], row["count"]) for row in content["rows"] if row["count"]}
    assert rows == {
        (name, True, 12) for name in ("kmeans", "reinforced_scorer (given)", "reinforced_scorer blind (given)")
    }
    assert "| kmeans | no | kept |" in capsys.readouterr().out


def test_evaluate_several_scorers_of_any_kind(scene: Path, tmp_path: Path, capsys: Output) -> None:
    ReinforcedScorer(192, hidden=8, channels=2, metric=4, degree=3).save_pretrained(tmp_path / "one")
    for name in ("two", "three"):
        LearnPruner(192, hidden=8).save_pretrained(tmp_path / name)
    options = ["--methods", "[random]", "--scorer", "[one, two, three]", "--counts", "[9]", "--mass", "kept"]
    main(["evaluate", "--data", str(asks(tmp_path)), *options, "--output", "out", "--dtype", "float32"])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    labels = [
        "random",
        "reinforced_scorer (given)",
        "reinforced_scorer blind (given)",
        "learn_pruner (given)",
        "learn_pruner (three)",
    ]
    assert [row["method"] for row in rows if row["count"]] == labels


def test_the_whole_catalogue_leaves_out_what_has_no_weights(
    scene: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"random": Random, "learn_pruner": LearnPruner, "vision_selector": VisionSelector}
    for module in ("crtc.methods.rows", "crtc.methods.catalogue"):
        monkeypatch.setattr(sys.modules[module], "catalogue", lambda: kinds)
    monkeypatch.setattr("crtc.methods.rows.get_method", lambda name, **settings: Random())
    monkeypatch.setattr("crtc.methods.learned.SHIPPED", tmp_path)
    LearnPruner(192, hidden=8).save_pretrained(tmp_path / "scorer")
    options = ["--scorer", "scorer", "--counts", "[9]", "--mass", "kept", "--output", "out", "--dtype", "float32"]
    main(["evaluate", "--data", str(asks(tmp_path)), *options])
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["skipped"] == {"vision_selector": UNREADY}
    assert "learn_pruner (given)" in {row["method"] for row in content["rows"]}
    assert f"vision_selector was skipped: {UNREADY}." in capsys.readouterr().out


@pytest.mark.parametrize("name", trainable())
def test_what_has_no_weights_is_refused_by_name(
    name: str, scene: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crtc.methods.learned.SHIPPED", tmp_path / "none")
    message = f"is not ready for use: {UNREADY}"
    refused(["compress", "--image", str(scene), "--prompt", "why?", "--method", name], message, capsys)
    refused(["evaluate", "--methods", f"[{name}]"], message, capsys)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments: list[str], capsys: Output) -> None:
    main(arguments)
    said = capsys.readouterr().out
    for name in (*(command.__name__ for command in COMMANDS), *TRAINING):
        assert f"\n  {name} " in said


@pytest.mark.parametrize("name", [*(command.__name__ for command in COMMANDS), *TRAINING])
def test_help_of_every_command(name: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert not stop.value.code and "usage" in capsys.readouterr().out.lower()


def refused(arguments: list[str], message: str, capsys: Output) -> str:
    """The command ends with exit code 2 and a last line that holds the message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(said)
    assert message in said[-1], said
    return said[-1]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown method": (["--method", "kmeens"], "no method is named 'kmeens'"),
    "count too large": (["--count", "577"], "count is 577, but a group has only 576 tokens"),
    "count of nothing": (["--count", "0"], "count is 0"),
    "keep of nothing": (["--keep", "0"], "keep is 0.0"),
    "keep more than all": (["--keep", "1.5"], "keep is 1.5"),
    "count and keep": (["--count", "5", "--keep", "0.5"], "expected exactly one of them"),
    "unknown host": (["--host", "./nowhere"], "host './nowhere' cannot be loaded"),
    "unknown scorer": (["--scorer", "nowhere"], "nowhere holds no readable scorer"),
    "unknown device": (["--device", "abacus"], "device 'abacus' cannot be used"),
    "no folder for the output": (["--count", "5", "--output", "nowhere/overlay.png"], "nowhere"),
    "unknown option": (["--cuont", "5"], "cuont"),
    "count is no number": (["--count", "many"], "many"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_of_compress(scene: Path, capsys: Output, options: list[str], message: str) -> None:
    line = refused(["compress", "--image", str(scene), "--prompt", "why?", *options], message, capsys)
    if not options[0].startswith("--cuont") and options[1] != "many":
        assert line.startswith("crtc: ")


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_images_that_cannot_be_read(tmp_path: Path, capsys: Output, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "image.png").write_bytes(content)
    refused(["compress", "--image", "image.png", "--prompt", "why?"], "image 'image.png' cannot be read", capsys)


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def _break(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("damage", [_cut, _break])
def test_damaged_scorer(scene: Path, tmp_path: Path, capsys: Output, damage: Callable[[Path], None]) -> None:
    ReinforcedScorer(192, hidden=8, channels=2, metric=4, degree=3).save_pretrained(tmp_path / "scorer")
    damage(tmp_path / "scorer")
    for command in (["compress", "--image", str(scene), "--prompt", "why?"], ["evaluate"]):
        refused([*command, "--scorer", "scorer"], "scorer holds no readable scorer", capsys)


def test_scorer_of_another_host(scene: Path, tmp_path: Path, capsys: Output) -> None:
    ReinforcedScorer(64, hidden=8, channels=2, metric=4, degree=3).save_pretrained(tmp_path / "scorer")
    message = "tokens have 192 channels, this scorer was trained on a host with 64"
    refused(["compress", "--image", str(scene), "--prompt", "why?", "--scorer", "scorer"], message, capsys)


def test_damaged_host(scene: Path, small_host: Path, tmp_path: Path, capsys: Output) -> None:
    _cut(shutil.copytree(small_host, tmp_path / "host"))
    refused(
        ["compress", "--image", str(scene), "--prompt", "why?", "--host", "./host"],
        "host './host' cannot be loaded",
        capsys,
    )


EVALUATE: dict[str, tuple[list[str], str]] = {
    "counts too large": (["--counts", "[600]"], "counts is [600]"),
    "counts of nothing": (["--counts", "[16, 0]"], "counts is [16, 0]"),
    "keep of nothing": (["--keep", "[0.0]"], "keep is [0.0]"),
    "keep more than all": (["--keep", "1.5"], "keep is [1.5]"),
    "counts and keep": (["--counts", "[16]", "--keep", "[0.5]"], "expected one of them"),
    "unknown method": (["--methods", "[kmeens]"], "no method is named 'kmeens'"),
    "blind but never sees": (["--methods", "[kmeans blind]"], "kmeans blind"),
    "no methods": (["--methods", "[]"], "methods is []"),
    "no data": (["--data", "nowhere.jsonl"], "nowhere.jsonl is no file"),
    "no pictures": (["--pictures", "0"], "pictures is 0"),
    "unknown host": (["--host", "./nowhere"], "host './nowhere' cannot be loaded"),
    "counts that are none": (["--counts", "[]"], "counts and keep are empty"),
    "scenes beside a file": (["--data", "own.jsonl", "--pictures", "3"], "{'pictures': 3} are of glyph scenes"),
    "no batch": (["--batch", "0", "--pictures", "1", "--methods", "[random]"], "batch is 0"),
    "unknown split": (["--split", "validation"], "validation"),
}


@pytest.mark.parametrize(("options", "message"), EVALUATE.values(), ids=EVALUATE)
def test_mistakes_of_evaluate(capsys: Output, options: list[str], message: str) -> None:
    refused(["evaluate", *options], message, capsys)


def test_bad_data(scene: Path, tmp_path: Path, capsys: Output) -> None:
    options = ["--methods", "[random]", "--counts", "[16]"]
    refused(["evaluate", "--data", str(asks(tmp_path, question=3)), *options], "questions.jsonl:2", capsys)
    refused(["evaluate", "--data", str(asks(tmp_path, boxes=[[1, 2]])), *options], "questions.jsonl:2", capsys)
    refused(["evaluate", "--data", str(asks(tmp_path, image="gone.png")), *options], "gone.png does not exist", capsys)
    (tmp_path / "torn.png").write_bytes(scene.read_bytes()[:500])
    refused(["evaluate", "--data", str(asks(tmp_path, image="torn.png")), *options], "torn.png cannot be read", capsys)
    (tmp_path / "questions.jsonl").write_text("\n")
    refused(["evaluate", "--data", "questions.jsonl", *options], "questions.jsonl holds no questions", capsys)
    (tmp_path / "questions.jsonl").write_bytes(b"\xff\xfe")
    refused(["evaluate", "--data", "questions.jsonl", *options], "questions.jsonl", capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compres"], "compres"),
        (["show", "--number", "-1"], "number is -1"),
        (["show", "--output", "nowhere/scene.png"], "nowhere"),
        (["ablate", "[nowhere.yaml]"], "is no readable YAML"),
        (["fit", "--model.gate", "lottery"], "lottery"),
        (["fit", "--model.counts", "[0]"], "counts is (0,)"),
        (["fit", "--model.stepz", "3"], "stepz"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["host", "--model.stage", "last"], "'last'"),
        (["fit", "--model.learning_rate", "0"], "learning rates are 0.0"),
        (["fit", "--every", "0"], "every is 0"),
        (["fit", "--trainer.accelerator", "abacus"], "abacus"),
        (["host", "--model.start_from", "nowhere.pt"], "nowhere.pt"),
        (["host", "--model.start_from", str(EMBEDDED / "model.safetensors")], "holds no weights of this model"),
        (["host", "--patience", "3"], "patience"),
        (["benchmark", "--methods", "[]"], "methods is []"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_mistakes_of_the_others(arguments: list[str], message: str, capsys: Output) -> None:
    refused(arguments, message, capsys)


def test_fit_and_ablate_from_the_command_line(small_host: Path, tmp_path: Path, capsys: Output) -> None:
    model = (
        "{steps: 1, pictures: 1, questions: 1, counts: [8], calibration_pictures: 1, design: {hidden: 8, degree: 2}}"
    )
    (tmp_path / "fit.yaml").write_text(f"model: {model}\nfolder: fitted\n")
    main(["fit", "--config", "fit.yaml", "--model.host", str(small_host)])
    assert "wrote the scorer to fitted/scorer" in capsys.readouterr().out
    assert ReinforcedScorer.from_pretrained(tmp_path / "fitted" / "scorer").design.degree == 2
    assert len(list((tmp_path / "fitted").glob("wandb/offline-run-*"))) == 1
    evaluate = "evaluate: {pictures: 1, questions: 1, counts: [8]}"
    (tmp_path / "base.yaml").write_text(f"about: as it is\nmodel: {model}\n{evaluate}\n")
    (tmp_path / "mlp.yaml").write_text("about: no graph\nmodel: {design: {graph: false}}\n")
    main(["ablate", "mlp.yaml", "--base", "base.yaml", "--folder", "ablations", "--host", str(small_host)])
    said = capsys.readouterr().out
    main(["ablate", "[mlp.yaml, base.yaml]", "--base", "base.yaml", "--folder", "ablations", "--host", str(small_host)])
    assert capsys.readouterr().out.splitlines() == said.splitlines()[-6:]
    main(["ablate", "mlp.yaml", "base.yaml", "--base", "base.yaml", "--folder", "ablations", "--host", str(small_host)])
    assert capsys.readouterr().out.splitlines() == said.splitlines()[-6:]
    assert "| as it is | 1 |" in said and "| no graph | 1 |" in said
    assert said.endswith(
        f"{(tmp_path / 'ablations' / 'table.md').read_text()}\nwrote the table to ablations/table.md\n"
    )
