"""The model card of a scorer: what it is, which hosts it fits, how to use it, how it was trained, how well it did."""

import json
import re
from collections.abc import Mapping
from typing import Any

from crtc.methods.method import Method
from crtc.methods.origin import Origin

_FIGURE = re.compile(r"(kl|accuracy)_(aware|blind)_(\d+)")


def card(kind: type[Method], width: int, design: Mapping[str, Any], origin: Origin | None, where: str) -> str:
    """Markdown with the hub's front matter.

    Args:
        kind: of the scorer.
        width: channels of the host's embedding space.
        design: what the scorer's constructor takes.
        origin: None where nobody noted it.
        where: hub id or folder under which readers find it.
    """
    trained = f", trained through {origin.host}" if origin else ""
    parts = [
        _front(origin),
        f"# {kind.__name__}{trained}",
        f"Chooses which visual tokens of a vision-language model stay, for hosts whose embedding space has {width} "
        "channels; it refuses others. The host itself stays as it is.",
        f"Method: {kind.source}." + (f" Deviations: {kind.deviations()}" if kind.deviations() else ""),
        "## Use",
        "```python\n"
        "import crtc\n"
        "from crtc.methods import trained\n\n"
        f"scorer = trained({json.dumps(where)})\n"
        "with crtc.compressed(model, scorer, count=64):  # visual tokens of every image\n"
        "    answer = model.generate(**inputs)\n"
        "```",
        "## Training",
        "The host was frozen; the compressed model learned to answer as the full one does." if origin else "Not noted.",
        _table(("setting", "value"), (origin.settings if origin else {}).items()),
        "## Calibration",
        _calibration(origin.calibration if origin else {}),
        "## Design",
        _table(("part", "value"), design.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(origin: Origin | None) -> str:
    """What the hub reads; the base model where the host has a hub id."""
    lines = ["---", "library_name: crtc", "license: apache-2.0", "tags:", "- visual-token-compression"]
    if origin is not None and "/" in origin.host:
        lines.append(f"base_model: {origin.host}")
    return "\n".join([*lines, "---"])


def _calibration(figures: Mapping[str, float]) -> str:
    """A row for every count, with and without the question."""
    if not figures:
        return "Not noted."
    found = {match.groups(): value for name, value in figures.items() if (match := _FIGURE.fullmatch(name))}
    rows = []
    for way, count in sorted({key[1:] for key in found}, key=lambda key: (key[0], -int(key[1]))):
        kl, right = found.get(("kl", way, count)), found.get(("accuracy", way, count))
        cells = ("-" if kl is None else f"{kl:.4f}", "-" if right is None else f"{100 * right:.1f}")
        rows.append(f"| {count} | {'yes' if way == 'aware' else 'no'} | {cells[0]} | {cells[1]} |")
    head = ["| tokens | sees question | KL to the full model, nats | right answers, % |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _table(head: tuple[str, str], rows: Any) -> str:
    lines = [f"| {name} | {json.dumps(value)} |".replace("`", "'") for name, value in rows]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *lines]) if lines else ""
