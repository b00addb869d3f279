"""The whole job on real input in one command: train a scorer, compare it with the field, draw, and log."""

from collections.abc import Sequence
from pathlib import Path

import torch

from crtc import tracking
from crtc.evaluation import Evaluation
from crtc.evaluation.drawing import curves
from crtc.evaluation.report import markdown, save
from crtc.hosts.embedded import load_host
from crtc.methods import Method, catalogue, get_method
from crtc.methods.reinforced import Reinforced
from crtc.showing import overlays
from crtc.tasks.picture import Glyphs
from crtc.training.fit import fit_scorer
from crtc.training.scorer import ScorerTraining

SHORT = (
    *("random", "uniform_grid", "pool", "cls_attention", "cross_modal_similarity", "kmeans", "tome", "vision_zip"),
    *("div_prune", "gprune", "personalized_page_rank"),
)
"""Methods of the demo; the whole catalogue takes several times as long."""


def field(scorer: Path | str | None = None, *, names: Sequence[str] | None = None) -> dict[str, Method]:
    """Methods by the label of their row, the learned one with and without the question.

    Args:
        scorer: folder of a scorer to compare beside the shipped one.
        names: of training-free methods; the whole catalogue without.
    """
    chosen = [name for name in catalogue() if name != "reinforced"] if names is None else names
    rows: dict[str, Method] = {name: get_method(name) for name in chosen}
    rows["reinforced"] = Reinforced.ready()
    rows["reinforced blind"] = Reinforced.ready(question=False)
    if scorer is not None:
        rows["reinforced (this run)"] = Reinforced.from_pretrained(scorer)
        rows["reinforced blind (this run)"] = Reinforced.from_pretrained(scorer, question=False)
    return rows


def demo(folder: Path | str = "runs/demo", *, steps: int = 200, pictures: int = 90, seed: int = 0) -> str:
    """Train a scorer for a few minutes, evaluate the field beside it and the shipped one, and write all of it down.

    Args:
        folder: of everything that is written; run again, it goes on where it stopped.
        steps: of training.
        pictures: test scenes with 12 questions each.
        seed: of training.
    """
    folder = Path(folder)
    print(f"1/3 training a scorer for {steps} steps through the embedded host")
    scorer = folder / "fit" / "scorer"
    if not (scorer / "model.safetensors").exists():
        scorer = fit_scorer(
            ScorerTraining(steps=steps, seed=seed, calibration_pictures=10), folder / "fit", every=max(steps // 2, 1)
        )
    print("2/3 comparing it with the shipped scorer and the training-free field")
    host = load_host(dtype=torch.bfloat16)
    methods, task = field(scorer, names=SHORT), Glyphs("test", pictures, 12)
    results = Evaluation(host, task, methods).run(folder)
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
