"""Results on photographs as JSON, as Markdown tables, and as curves."""

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from crtc.evaluation.photographs import Classified
from crtc.evaluation.report import finite
from crtc.retention import Interval, difference, ratio, resamples

REFERENCE = "reinforced"
"""What the other methods are compared with, where it runs; else the first."""


def summary(results: Classified) -> dict[str, Any]:
    """Every figure with its interval, ready for JSON; all in percent or points of it."""
    draws = resamples(results.image)
    full, each = results.full, np.ones(len(results.full))
    labels = list(dict.fromkeys(label for label, *_ in results.runs))
    reference = REFERENCE if REFERENCE in labels else labels[0]
    rows = []
    for (label, layer, mass, count), right in results.runs.items():
        against = results.runs[reference, layer, mass, count]
        rows.append(
            {
                "method": label,
                "layer": layer,
                "mass": mass,
                "count": count,
                "accuracy": vars(ratio(right, each, draws)),
                "relative": vars(ratio(right, full, draws)),
                "difference": None if label == reference else vars(difference(right, against, full, draws)),
                "planning_ms": results.milliseconds[label, layer, count],
            }
        )
    return {
        "config": results.config,
        "images": len(full),
        "accuracy": vars(ratio(full, each, draws)),
        "reference": reference,
        "skipped": results.skipped,
        "rows": rows,
    }


def markdown(said: dict[str, Any]) -> str:
    """One table per layer.

    Args:
        said: what `summary` gives.
    """
    config, rows = said["config"], said["rows"]
    lines = [
        f"Top-1 accuracy of {config['model']} on {said['images']} images of {config['data']}: with all "
        f"{config['patches']} patch tokens {Interval(**said['accuracy'])} %. Preprocessing: {config['preprocessing']}. "
        "Every cell has the accuracy in percent; relative to all tokens, in percent; and relative accuracy minus that "
        f"of {said['reference']}, in points, paired by image. In brackets 95 % bootstrap intervals over images.",
    ]
    for layer in config["layers"]:
        lines += ["", f"Patch tokens left in front of layer {layer}, counted from 0:", ""]
        lines.append("| method | mass | " + " | ".join(map(str, config["counts"])) + " |")
        lines.append("|---" * (len(config["counts"]) + 2) + "|")
        here = {(row["method"], row["mass"], row["count"]): row for row in rows if row["layer"] == layer}
        for label, mass in dict.fromkeys((label, mass) for label, mass, _ in here):
            cells = [_cell(here[label, mass, count]) for count in config["counts"]]
            lines.append(f"| {label} | {'kept' if mass else 'plain'} | " + " | ".join(cells) + " |")
    for label, reason in said["skipped"].items():
        lines.append(f"\n{label} was skipped: {reason}.")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    cell = f"{row['accuracy']['value']:.1f}; {Interval(**row['relative'])}"
    return cell if row["difference"] is None else f"{cell}; {Interval(**row['difference'])}"


def curves(said: dict[str, Any], path: Path | str) -> None:
    """Accuracy against the count, one panel per layer.

    Args:
        said: what `summary` gives.
        path: of the PNG.
    """
    layers, counts = said["config"]["layers"], said["config"]["counts"]
    figure = Figure(figsize=(5.2 * len(layers) + 2.4, 5), layout="constrained")
    labels = list(dict.fromkeys(row["method"] for row in said["rows"]))
    colors = dict(zip(labels, matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(labels))), strict=True))
    markers = dict(zip(labels, cycle("osD^vPX*"), strict=False))
    for place, layer in enumerate(layers):
        axes = figure.add_subplot(1, len(layers), place + 1, sharey=figure.axes[0] if place else None)
        here = [row for row in said["rows"] if row["layer"] == layer]
        for label, mass in dict.fromkeys((row["method"], row["mass"]) for row in here):
            mine = [row for row in here if (row["method"], row["mass"]) == (label, mass)]
            value, low, high = np.array(
                [[row["accuracy"][name] for name in ("value", "low", "high")] for row in mine]
            ).T
            own = label == REFERENCE
            axes.errorbar(
                [row["count"] for row in mine],
                value,
                yerr=[value - low, high - value],
                label=f"{label}, mass kept" if mass else label,
                color="black" if own else colors[label],
                linestyle="-" if mass else "--",
                linewidth=2.6 if own else 1.4,
                marker=markers[label],
                markersize=5,
                capsize=2,
                elinewidth=0.8,
            )
        full = said["accuracy"]
        axes.axhline(full["value"], color="grey", linewidth=0.8, linestyle=":")
        axes.axhspan(full["low"], full["high"], color="grey", alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("patch tokens left per image")
        axes.set_title(f"in front of layer {layer}")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("top-1 accuracy, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path)


def save(results: Classified, folder: Path | str) -> str:
    """Write `results.json`, `table.md`, `curves.png` and `images.npz` (one entry per image and run); give the table."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    said = summary(results)
    table = markdown(said)
    (folder / "results.json").write_text(json.dumps(finite(said), indent=1) + "\n")
    (folder / "table.md").write_text(table)
    curves(said, folder / "curves.png")
    arrays: dict[str, Any] = {
        f"{label}|{layer}|{'mass' if mass else 'plain'}|{count}": right
        for (label, layer, mass, count), right in results.runs.items()
    }
    np.savez_compressed(folder / "images.npz", **arrays, full=results.full, image=results.image)
    return table
