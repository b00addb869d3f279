"""The whole job on real input in one command: train a scorer, compare it with the field, draw, and log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crtc import tracking
from crtc.evaluation import Evaluation
from crtc.evaluation.drawing import curves
from crtc.evaluation.report import markdown, save
from crtc.hosts.embedded import load_host
from crtc.methods import Method, catalogue, get_method, trainable, trained, unready
from crtc.showing import overlays
from crtc.tasks.picture import Glyphs
from crtc.training.fit import fit_scorer
from crtc.training.scorer import ScorerTraining

SHORT = (
    *("random", "uniform_grid", "pool", "cls_attention", "kmeans", "tome", "vision_zip", "div_prune", "gprune"),
    "agglomerative",
)
"""Methods of the demo; the whole catalogue takes several times as long."""


def field(folders: Sequence[Path | str] = (), *, names: Sequence[str] | None = None) -> dict[str, Method]:
    """Methods by the label of their row, the learned one with and without the question.

    Args:
        folders: of trained scorers to compare beside the shipped one.
        names: of the other methods; without, all of the catalogue that are ready, `left_out` says which are not.
    """
    chosen = [name for name in catalogue() if name != "reinforced" and name not in unready()]
    rows: dict[str, Method] = {name: get_method(name) for name in (chosen if names is None else names)}
    rows["reinforced"] = get_method("reinforced")
    rows["reinforced blind"] = get_method("reinforced", question=False)
    return {**rows, **scorers(folders)}


def scorers(folders: Sequence[Path | str]) -> dict[str, Method]:
    """Scorers from the folders of `crtc fit`, in every way in which they work, by the label of their row."""
    rows: dict[str, Method] = {}
    for folder in folders:
        kind = type(trained(folder))
        name = next(name for name, entry in trainable().items() if entry is kind)
        note = str(folder) if f"{name} (given)" in rows else "given"
        for way in kind.ways:
            settings: dict[str, Any] = {"question": way} if len(kind.ways) > 1 else {}
            label = name if way is kind.ways[0] else f"{name} {'aware' if way else 'blind'}"
            rows[f"{label} ({note})"] = trained(folder, **settings)
    return rows


def left_out(rows: Sequence[str]) -> dict[str, str]:
    """Methods of the catalogue that none of these rows is of since they are not ready for use, with the reason."""
    return {name: why for name, why in unready().items() if not any(row.split(" ")[0] == name for row in rows)}


def demo(folder: Path | str = "runs/demo", *, steps: int = 100, pictures: int = 84, seed: int = 0) -> str:
    """Train a scorer for a few minutes, evaluate the field beside it and the shipped one, and write all of it down.

    Args:
        folder: of everything that is written; run again, it goes on where it stopped.
        steps: of training.
        pictures: test scenes with 12 questions each.
        seed: of training.

    Raises:
        ValueError: if the folder holds a training of other settings.
    """
    folder = Path(folder)
    print(f"1/3 training a scorer for {steps} steps through the embedded host")
    training = ScorerTraining(steps=steps, seed=seed, calibration_pictures=10)
    scorer = fit_scorer(training, folder / "fit", every=max(steps // 2, 1))
    print("2/3 comparing it with the shipped scorer and the training-free field")
    host = load_host(dtype=torch.bfloat16)
    methods, task = field([scorer], names=SHORT), Glyphs("test", pictures, 12)
    results = Evaluation(host, task, methods, skipped=left_out(list(methods))).run(folder)
    print("3/3 drawing and logging")
    summary = save(results, folder)
    curves(summary, folder / "curves.png")
    drawn = {"curves": folder / "curves.png", **overlays(host, task, methods, 64, folder)}
    with tracking.track("evaluate", results.config, folder) as run:
        tracking.log_evaluation(run, summary, drawn)
        tracking.log_folder(run, scorer, "scorer", "scorer")
    table = markdown(results)
    print(table)
    written = ", ".join(
        str(folder / name) for name in ("results.json", "table.md", "curves.png", "overlay-*.png", "wandb")
    )
    print(f"wrote {written}")
    return table
