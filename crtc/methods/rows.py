"""Methods side by side, by the label of their row in a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from crtc.methods.catalogue import catalogue, get_method, trainable, trained, unready
from crtc.methods.method import Method


def field(folders: Sequence[Path | str] = (), *, names: Sequence[str] | None = None) -> dict[str, Method]:
    """Methods by the label of their row, the learned one with and without the question.

    Args:
        folders: of trained scorers to compare beside the shipped one.
        names: of the other methods; without, all of the catalogue that are ready, `left_out` says which are not.
    """
    chosen = [name for name in catalogue() if name != "reinforced_scorer" and name not in unready()]
    rows: dict[str, Method] = {name: get_method(name) for name in (chosen if names is None else names)}
    rows["reinforced_scorer"] = get_method("reinforced_scorer")
    rows["reinforced_scorer blind"] = get_method("reinforced_scorer", question=False)
    return {**rows, **scorers(folders)}


def named(names: Sequence[str]) -> dict[str, Method]:
    """Methods by what a user writes, which is also the label of their row.

    Args:
        names: of the catalogue; `reinforced_scorer blind` is the scorer without the question, and settings follow in
            brackets: `reinforced(importance=cls_attention*inverse_degree)`, `kmeans(seed=1, metric=spherical)`.

    Raises:
        ValueError: if there is no such method, or it cannot be made with these settings.
    """
    rows: dict[str, Method] = {}
    for text in names:
        name, settings = _settings(text)
        if name.endswith(" blind"):
            settings["question"] = False
        try:
            rows[text] = get_method(name.removesuffix(" blind"), **settings)
        except TypeError as error:
            raise ValueError(f"method {text!r} cannot be made: {error}") from error
    return rows


def _settings(text: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of `name(key=value, ...)`; values are YAML's numbers, truths and words."""
    name, bracket, inside = text.partition("(")
    if not bracket:
        return text, {}
    settings: dict[str, Any] = {}
    for part in inside.removesuffix(")").split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (inside.endswith(")") and key.isidentifier() and equals and value):
            raise ValueError(f"method is {text!r}, expected name(setting=value, ...)")
        settings[key] = yaml.safe_load(value)
    return name.strip(), settings


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
