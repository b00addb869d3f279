"""One image and one question: the answer with and without compression, and an overlay of what stays. And all that an
evaluation leaves behind: figures, tables, curves, overlays, and a run on W&B.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crtc import tracking
from crtc.compression import compressed
from crtc.evaluation import Results
from crtc.evaluation.drawing import curves, overlay
from crtc.evaluation.report import save
from crtc.hosts.dialogue import prompt_of
from crtc.hosts.view import view_of
from crtc.methods import Method
from crtc.tasks.picture import Picture, Task

DRAWN = ("reinforced", "reinforced_scorer", "reinforced_scorer blind", "kmeans", "div_prune")


@dataclass(frozen=True)
class Shown:
    """What a host answers.

    Args:
        full: with all tokens.
        compressed: with the tokens that the method leaves.
        tokens: visual tokens of the image.
        kept: of them.
    """

    full: str
    compressed: str
    tokens: int
    kept: int


@torch.no_grad()
def answer(
    host: tuple[Any, Any],
    picture: Picture,
    question: str,
    method: Method,
    *,
    count: int | None = None,
    keep: float | None = None,
    mass: bool = True,
    max_new_tokens: int = 24,
    path: Path | str | None = None,
) -> Shown:
    """Answer a question about an image both ways, and draw the overlay if a path is given."""
    model, processor = host
    inputs = processor(images=picture.image, text=prompt_of(processor, question), return_tensors="pt").to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    start = inputs["input_ids"].shape[1]
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    full = model.generate(**inputs, **options)[0, start:]
    with compressed(model, method, keep=keep, count=count, mass=mass, positions="keep") as handle:
        short = model.generate(**inputs, **options)[0, start:]
    tokens, plan = handle.tokens, handle.plan
    assert tokens is not None and plan is not None
    if path is not None:
        scored = getattr(method, "score", None)
        importance = None if scored is None or method.missing(tokens) else scored(tokens).float().cpu().numpy()
        view = view_of(processor, *picture.image.size)
        seen = picture.image.crop(tuple(round(side) for side in view))  # type: ignore[arg-type]
        overlay(seen, tokens, plan, path, importance=importance, title=f"{type(method).__name__}: {question}")
    said = [processor.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in (full, short)]
    return Shown(said[0], said[1], int(tokens.candidates.sum()), len(plan.kept))


def overlays(
    host: tuple[Any, Any], task: Task, methods: Mapping[str, Method], count: int, folder: Path | str
) -> dict[str, Path]:
    """Overlays of the first question of a task, for the learned method and the two it is most often compared with.

    Args:
        host: model and processor.
        task: what is asked.
        methods: by the label of their row; those that `DRAWN` names are drawn, the first three if there are none.
        count: whole tokens to keep.
        folder: of the PNGs.

    Returns:
        Files by label.
    """
    picture = task[0]
    labels = [label for label in DRAWN if label in methods] or list(methods)[:3]
    drawn = {}
    for label in labels:
        path = Path(folder) / f"overlay-{re.sub(r'[^A-Za-z0-9_]+', '-', label).strip('-')}.png"
        answer(host, picture, picture.questions[0].text, methods[label], count=count, path=path)
        drawn[f"overlay/{label}"] = path
    return drawn


def record(
    results: Results,
    host: tuple[Any, Any],
    task: Task,
    methods: Mapping[str, Method],
    folder: Path | str,
    *,
    named: str,
    scorers: Sequence[Path | str] = (),
    kind: str = "evaluate",
    config: Mapping[str, Any] | None = None,
) -> str:
    """Write, draw and log an evaluation.

    Args:
        results: of it.
        host: model and processor.
        task: what was asked.
        methods: by the label of their row.
        folder: of `results.json`, `table.md`, `questions.npz`, `curves.png`, the overlays and the W&B run.
        named: what the host is called.
        scorers: folders to log as artefacts.
        kind: of the W&B run.
        config: of the W&B run, beside that of the evaluation.

    Returns:
        The tables.
    """
    folder = Path(folder)
    summary = save(results, folder)
    curves(summary, folder / "curves.png")
    middle = results.counts[len(results.counts) // 2]
    able = {label: method for label, method in methods.items() if results.able(label, middle)}
    drawn = {"curves": folder / "curves.png", **overlays(host, task, able, middle, folder)}
    with tracking.track(kind, {**results.config, "host_name": named, **(config or {})}, folder) as run:
        tracking.log_evaluation(run, summary, drawn)
        for place, scorer in enumerate(scorers):
            tracking.log_folder(run, scorer, f"scorer-{place}" if place else "scorer", "scorer")
    return (folder / "table.md").read_text()
