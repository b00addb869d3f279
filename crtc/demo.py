"""The whole job on real input in one command: train a scorer, compare it with the field, draw, and log."""

from pathlib import Path

from crtc import tracking
from crtc.dtypes import Name, resolve, told
from crtc.evaluation import Evaluation
from crtc.hosts.embedded import load_host
from crtc.methods.rows import field, left_out
from crtc.showing import record
from crtc.tasks.picture import Glyphs
from crtc.training.fit import fit_scorer
from crtc.training.scorer import ScorerTraining

SHORT = (
    *("random", "uniform_grid", "pool", "cls_attention", "kmeans", "tome", "vision_zip", "div_prune", "gprune"),
    *("agglomerative", "dbdpc", "mmtok", "reinforced"),
)
"""Methods of the demo, the strongest rivals and our untrained one among them; the catalogue takes several times as
long."""


def demo(
    folder: Path | str = "runs/demo",
    *,
    steps: int = 100,
    pictures: int = 48,
    seed: int = 0,
    dtype: Name = "auto",
) -> str:
    """Train a scorer for a few minutes, evaluate the field beside it and the shipped one, and write all of it down.

    Args:
        folder: of everything that is written; run again, it goes on where it stopped.
        steps: of training.
        pictures: test scenes with 12 questions each.
        seed: of training.
        dtype: of the host; "auto" is the one that is fast on this machine.

    Raises:
        ValueError: if the folder holds a training of other settings, or there is no such dtype.
    """
    folder = Path(folder)
    tracking.mode()  # refuses before the work, not behind it
    training = ScorerTraining(steps=steps, seed=seed, calibration_pictures=10, precision=dtype)
    runs = told() if dtype == "auto" else dtype
    print(f"1/3 training a scorer for {steps} steps through the embedded host, which runs in {runs}")
    scorer = fit_scorer(training, folder / "fit", every=max(steps // 2, 1))
    print("2/3 comparing it with the shipped scorer and the training-free field")
    host = load_host(dtype=resolve(dtype, "cpu"))
    methods, task = field([scorer], names=SHORT), Glyphs("test", pictures, 12)
    results = Evaluation(host, task, methods, skipped=left_out(list(methods))).run(folder)
    print("3/3 drawing and logging")
    table = record(results, host, task, methods, folder, named="embedded", scorers=[scorer])
    print(table)
    written = ", ".join(
        str(folder / name) for name in ("results.json", "table.md", "curves.png", "overlay-*.png", "wandb")
    )
    print(f"wrote {written}")
    return table
