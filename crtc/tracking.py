"""Runs on Weights & Biases: offline without an account, online by the user's own settings (`WANDB_PROJECT`, ...)."""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import wandb

PROJECT = "crtc"


def mode() -> Literal["online", "offline", "disabled", "shared"]:
    """`WANDB_MODE` if set; online if an account is configured; else offline (`wandb sync` uploads later)."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen in ("online", "offline", "disabled", "shared"):
        return chosen  # type: ignore[return-value]
    if chosen:
        raise ValueError(f"WANDB_MODE is {chosen!r}, expected online, offline, disabled or shared")
    return "online" if os.environ.get("WANDB_API_KEY") or _account() else "offline"


def _account() -> bool:
    """Whether W&B has been logged in to on this machine."""
    if "prompt" in inspect.signature(wandb.login).parameters:  # 0.30 on, which warns of what older ones need
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)


def settings(kind: str, folder: Path | str) -> dict[str, Any]:
    """What `wandb.init` takes for a run of a kind (`fit`, `evaluate`, `ablate`), its files under `folder/wandb`."""
    folder = Path(folder).resolve()  # a relative one would be taken from where W&B finds itself
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "job_type": kind,
        "dir": str(folder),
        "mode": mode(),
        "settings": wandb.Settings(silent=True, console="off"),
    }


def run_id(folder: Path | str, *, anew: bool) -> str:
    """Id of the run that the training in a folder is logged to, kept there, so that it goes on under the same one.

    Args:
        folder: of the training.
        anew: whether it begins, and with it another run.
    """
    file = Path(folder) / "wandb" / "run-id"
    if anew or not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid4().hex[:8] + "\n")
    return file.read_text().strip()


@contextmanager
def track(kind: str, config: Mapping[str, Any], folder: Path | str) -> Iterator[Any]:
    """A run of a kind while the block lasts; see `settings`."""
    run = wandb.init(config=dict(config), **settings(kind, folder))
    try:
        yield run
    finally:
        run.finish()


def log_evaluation(run: Any, summary: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """The tables of an evaluation (retention, families, differences), its curves by count, and its pictures."""
    columns = (
        "method",
        "mass",
        "count",
        "question_aware",
        "accuracy",
        "agreement",
        "kl_mean",
        "kl_p90",
        "harmful_flips",
        "lucky_flips",
        "evidence_recall",
        "planning_ms",
        "layer_equivalent",
    )
    table = wandb.Table(columns=[*columns, "relative", "low", "high"])
    for row in summary["rows"]:
        table.add_data(*(row[name] for name in columns), *(row["relative"][name] for name in ("value", "low", "high")))
    families = wandb.Table(columns=["method", "mass", "count", "family", "questions", "accuracy"])
    for row in summary["rows"]:
        for family, found in row["families"].items():
            families.add_data(row["method"], row["mass"], row["count"], family, found["questions"], found["accuracy"])
    differences = wandb.Table(columns=["learned", "against", "count", "difference", "low", "high"])
    for row in summary["differences"]:
        found = row["difference"]
        differences.add_data(row["learned"], row["against"], row["count"], found["value"], found["low"], found["high"])
    tables = {"retention": table, "families": families, "differences": differences}
    run.log({**tables, **{name: wandb.Image(str(path)) for name, path in pictures.items()}})
    for row in summary["rows"]:
        name = f"relative/{row['method']}/{'mass' if row['mass'] else 'plain'}"
        run.summary[f"{name}/{row['count']}"] = row["relative"]["value"]


def log_folder(run: Any, folder: Path | str, name: str, kind: str) -> None:
    """A folder as an artefact, such as a scorer's checkpoint."""
    artefact = wandb.Artifact(name, type=kind)
    artefact.add_dir(str(folder))
    run.log_artifact(artefact)
