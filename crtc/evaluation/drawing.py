"""Pictures of results: retention curves, and overlays of what was kept and merged."""

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from crtc.tokens import Plan, Tokens

matplotlib.rcParams["figure.dpi"] = 110
NAMED = 9
"""Methods whose curves have a color and a name, beside the scorer and `SOUGHT`: those that keep most where few stay."""
OWN = {"reinforced": "black", "reinforced_scorer": "firebrick"}
"""Colors of our lines, untrained and trained."""
SOUGHT = {"random", "pool", "cls_attention", "vision_zip", "kmeans", "tome"}
"""Named too, since most readers look for them."""


def curves(summary: dict[str, Any], path: Path | str) -> None:
    """Accuracy relative to all tokens against the count, question-blind and question-aware methods side by side.

    Args:
        summary: as `report.summary` gives it; each method is drawn at its better setting.
        path: of the PNG.
    """
    figure = Figure(figsize=(16, 6), layout="constrained")
    rows = [row for row in summary["rows"] if row["count"]]
    counts = sorted({row["count"] for row in rows})
    for place, aware in enumerate((False, True)):
        axes = figure.add_subplot(1, 2, place + 1, sharey=figure.axes[0] if place else None)
        lines = {label: line for label, line in _lines(rows, aware).items() if not np.isnan(line[:, 1]).all()}
        # in the order in which they begin, those last that cannot spend the least counts
        order = sorted(lines, key=lambda label: (-len(lines[label]), -lines[label][0, 1]))
        learned = [label for label in order if label.startswith("reinforced")]
        best = [label for label in order if label not in learned][:NAMED]
        named = [label for label in order if label in {*learned, *best, *SOUGHT}]
        colors = dict(zip(named, matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(named))), strict=True))
        markers = dict(zip(named, cycle("osD^vPX*"), strict=False))
        rest = [label for label in order if label not in named]
        for label in [*named, *rest]:
            count, value, low, high = lines[label].T
            own = label in learned
            axes.errorbar(
                count,
                value,
                yerr=[value - low, high - value],
                label=label if label in named else f"{len(rest)} more" if label == rest[0] else "_",
                color=OWN.get(label.split(" ")[0], colors.get(label, "0.75")),
                linestyle="--" if "(" in label else "-",  # what was given, and other settings, beside the plain one
                linewidth=2.6 if own else 1.4 if label in named else 0.7,
                marker=markers.get(label, ""),
                markersize=5,
                capsize=2 if label in named else 0,
                zorder=2 if label in named else 1,
            )
        axes.axhline(100, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.set_xlabel("visual tokens kept per image")
        axes.set_ylabel("accuracy relative to all tokens, %")
        axes.set_title("methods that see the question" if aware else "question-blind methods")
        if lines:
            axes.legend(fontsize=8, loc="center right", bbox_to_anchor=(-0.16, 0.5))
        axes.grid(alpha=0.3)
    figure.savefig(path)


def _lines(rows: list[dict[str, Any]], aware: bool) -> dict[str, npt.NDArray[np.float64]]:
    """Count, relative accuracy and its interval, at the better setting, of every method that sees as much."""
    found: dict[str, list[list[float | None]]] = {}
    mine = [row for row in rows if row["question_aware"] == aware]
    for label, count in sorted({(row["method"], row["count"]) for row in mine}):
        here = [row for row in mine if (row["method"], row["count"]) == (label, count)]
        best = max(here, key=lambda row: row["accuracy"])["relative"]
        found.setdefault(label, []).append([count, *(best[name] for name in ("value", "low", "high"))])
    return {label: np.array(line, float) for label, line in found.items()}


def overlay(
    image: Image.Image,
    tokens: Tokens,
    plan: Plan,
    path: Path | str,
    *,
    importance: npt.NDArray[np.float32] | None = None,
    title: str = "",
) -> None:
    """What stays of one image: the image, its kept tokens, the clusters they stand for, and the importance.

    Args:
        image: as the host saw it.
        tokens: of a single prompt with a single image, with `grid`.
        plan: of these tokens.
        path: of the PNG.
        importance: of every token; without, the panel is left out.
        title: above the panels.
    """
    inside = tokens.candidates.cpu().numpy()
    grid = tokens.grid.cpu().numpy()[inside]
    rows, columns = grid[:, 1].max() + 1, grid[:, 2].max() + 1
    slot = plan.slot.cpu().numpy()[inside]
    kept = np.zeros(len(tokens), dtype=bool)
    kept[plan.kept.cpu().numpy()] = True
    picture = np.asarray(image.convert("RGB"))
    high, wide = picture.shape[0] / rows, picture.shape[1] / columns
    panels = 3 + (importance is not None)
    figure = Figure(figsize=(4.2 * panels, 4.7), layout="constrained")
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for panel in axes:
        panel.imshow(picture)
        panel.axis("off")
    axes[0].set_title("image")
    axes[1].set_title(f"{len(plan.kept)} of {inside.sum()} tokens kept")
    veil = np.zeros((rows, columns, 4))
    veil[..., 3] = 0.75
    veil[grid[kept[inside], 1], grid[kept[inside], 2], 3] = 0
    extent = (0, picture.shape[1], picture.shape[0], 0)
    axes[1].imshow(veil, extent=extent)
    hues = matplotlib.colormaps["hsv"](np.random.default_rng(0).permutation(len(plan.kept)) / max(len(plan.kept), 1))
    clusters = np.zeros((rows, columns, 4))
    clusters[grid[slot >= 0, 1], grid[slot >= 0, 2]] = hues[slot[slot >= 0]]
    clusters[..., 3] *= 0.55
    axes[2].imshow(clusters, extent=extent)
    for _, r, c in grid[kept[inside]]:
        axes[2].add_patch(Rectangle((c * wide, r * high), wide, high, fill=False, edgecolor="white", linewidth=1.2))
    axes[2].set_title("what each kept token stands for")
    if importance is not None:
        heat = np.full((rows, columns), np.nan)
        heat[grid[:, 1], grid[:, 2]] = importance[inside]
        drawn = axes[3].imshow(heat, extent=extent, cmap="inferno", alpha=0.75)
        figure.colorbar(drawn, ax=axes[3], shrink=0.8)
        axes[3].set_title("log importance")
    if title:
        figure.suptitle(title)
    figure.savefig(path)
