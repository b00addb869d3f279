"""Runs on Weights & Biases: offline without an account, online by the user's own settings."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import wandb

PROJECT = "crtc"


def mode() -> Literal["online", "offline", "disabled", "shared"]:
    """`WANDB_MODE` if set; online if an account is configured; else offline (`wandb sync` uploads later)."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen in ("online", "offline", "disabled", "shared"):
        return chosen  # type: ignore[return-value]
    if chosen:
        raise ValueError(f"WANDB_MODE is {chosen!r}, expected online, offline, disabled or shared")
    return "online" if os.environ.get("WANDB_API_KEY") or wandb.api.api_key else "offline"


@contextmanager
def track(kind: str, config: Mapping[str, Any], folder: Path | str) -> Iterator[Any]:
    """A run of a kind (`fit`, `evaluate`, `ablate`) whose files lie under `folder/wandb`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(silent=True, console="off")
    run = wandb.init(
        project=PROJECT, job_type=kind, config=dict(config), dir=str(folder), mode=mode(), settings=settings
    )
    try:
        yield run
    finally:
        run.finish()


def log_evaluation(run: Any, summary: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """The table of an evaluation, its curves by count, and its pictures."""
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
    )
    table = wandb.Table(columns=[*columns, "relative", "low", "high"])
    for row in summary["rows"]:
        table.add_data(*(row[name] for name in columns), *(row["relative"][name] for name in ("value", "low", "high")))
    run.log({"retention": table, **{name: wandb.Image(str(path)) for name, path in pictures.items()}})
    for row in summary["rows"]:
        name = f"relative/{row['method']}/{'mass' if row['mass'] else 'plain'}"
        run.summary[f"{name}/{row['count']}"] = row["relative"]["value"]


def log_folder(run: Any, folder: Path | str, name: str, kind: str) -> None:
    """A folder as an artefact, such as a scorer's checkpoint."""
    artefact = wandb.Artifact(name, type=kind)
    artefact.add_dir(str(folder))
    run.log_artifact(artefact)
