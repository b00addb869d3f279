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


def curves(summary: dict[str, Any], path: Path | str) -> None:
    """Accuracy relative to all tokens against the count, question-blind and question-aware methods side by side.

    Args:
        summary: as `report.summary` gives it; each method is drawn at its better setting.
        path: of the PNG.
    """
    figure = Figure(figsize=(16, 6), layout="constrained")
    rows = [row for row in summary["rows"] if row["count"]]
    counts = sorted({row["count"] for row in rows})
    labels = list(dict.fromkeys(row["method"] for row in rows))
    colors = dict(zip(labels, matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(labels))), strict=True))
    markers = dict(zip(labels, cycle("osD^vPX*"), strict=False))
    for place, aware in enumerate((False, True)):
        axes = figure.add_subplot(1, 2, place + 1, sharey=figure.axes[0] if place else None)
        begin: dict[str, float] = {}
        for label in labels:
            mine = [row for row in rows if row["method"] == label and row["question_aware"] == aware]
            if not mine:
                continue
            able = [n for n in counts if any(row["count"] == n for row in mine)]
            best = [max((row for row in mine if row["count"] == n), key=lambda row: row["accuracy"]) for n in able]
            value = np.array([[row["relative"][name] for name in ("value", "low", "high")] for row in best], float)
            if np.isnan(value).all():  # nothing was right with all tokens
                continue
            learned = label.startswith("reinforced")
            begin[label] = float(value[0, 0])
            axes.errorbar(
                able,
                value[:, 0],
                yerr=[value[:, 0] - value[:, 1], value[:, 2] - value[:, 0]],
                label=label,
                color="black" if learned else colors[label],
                linestyle="--" if "(" in label else "-",  # the scorer of this run beside the shipped one
                linewidth=2.6 if learned else 1.4,
                marker="o" if learned else markers[label],
                markersize=5,
                capsize=2,
            )
        axes.axhline(100, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.set_xlabel("visual tokens kept per image")
        axes.set_ylabel("accuracy relative to all tokens, %")
        axes.set_title("methods that see the question" if aware else "question-blind methods")
        lines, names = axes.get_legend_handles_labels()
        if lines:  # beside the curves, in the order in which they begin
            order = sorted(range(len(names)), key=lambda i: begin[names[i]], reverse=True)
            axes.legend(
                [lines[i] for i in order], [names[i] for i in order],
                fontsize=8, loc="center right", bbox_to_anchor=(-0.1, 0.5),
            )  # fmt: skip
        axes.grid(alpha=0.3)
    figure.savefig(path)


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
