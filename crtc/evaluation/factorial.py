"""What decides: every importance with every aggregation, with mass and without, on the same questions."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from crtc.evaluation.evaluate import Evaluation, Results
from crtc.evaluation.report import finite
from crtc.methods import Method, Reinforced, get_method
from crtc.methods.reinforced import FACTORS, LOOKED
from crtc.retention import Interval, ratio, resamples
from crtc.tasks.picture import Task

IMPORTANCES = (*(name for name in FACTORS if name != LOOKED), "learned")
AGGREGATIONS = ("top_k", "nearest", "ward")
COUNTS = (64, 32, 16, 8)
DESIGN = ("importance", "aggregation", "mass")


def cells() -> dict[str, Method]:
    """A method for every importance and aggregation, by `importance / aggregation`.

    `"learned"` is the trained scorer without the question, in its own width alone. Top-k by `"uniform"` keeps the first
    tokens, since nothing tells them apart.
    """
    learned = get_method("reinforced_scorer", question=False)
    return {
        f"{importance} / {aggregation}": Reinforced(
            learned if importance == "learned" else importance,  # type: ignore[arg-type]
            aggregation=aggregation,  # type: ignore[arg-type]
        )
        for importance, aggregation in itertools.product(IMPORTANCES, AGGREGATIONS)
    }


def factorial(
    host: tuple[Any, Any], task: Task, folder: Path | str, *, counts: Sequence[int] = COUNTS, batch: int = 4
) -> str:
    """Run the study, going on where it stopped; write `factorial.json`, `table.md` and `heat.png`, give the table.

    Args:
        host: model and processor.
        task: what is asked.
        folder: of what is written, and of the parts that are finished.
        counts: whole tokens per image.
        batch: pictures side by side.
    """
    folder = Path(folder)
    methods = cells()
    for method in methods.values():
        method.to(host[0].device)
    results = Evaluation(host, task, methods, counts=counts, batch=batch).run(folder)
    found = study(results)
    (folder / "factorial.json").write_text(json.dumps(finite(found), indent=1) + "\n")
    (folder / "table.md").write_text(markdown(found))
    heat_map(found, folder / "heat.png")
    return (folder / "table.md").read_text()


def study(results: Results) -> dict[str, Any]:
    """Relative accuracy of every cell with its interval, and what share of its variance each factor explains."""
    draws, full = resamples(results.picture), results.full().right
    rows = []
    for (label, mass, count), run in results.runs.items():
        if count:
            importance, _, aggregation = label.partition(" / ")
            relative = vars(ratio(run.right, full, draws))
            rows.append(dict(importance=importance, aggregation=aggregation, mass=mass, count=count, relative=relative))
    said = {count: explained([row for row in rows if row["count"] == count]) for count in results.counts}
    return {
        "config": results.config,
        "questions": len(full),
        "pictures": len(np.unique(results.picture)),
        "skipped": results.skipped,
        "rows": rows,
        "explained": said,
    }


def explained(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share in percent of the variance of cells that each factor explains by itself, and what is left to interactions.

    The sum of squares of a factor's means about the grand mean, over that of all cells; shares of a full design add up.
    NaN where all cells are equal.
    """
    value = np.array([row["relative"]["value"] for row in rows])
    total = float(((value - value.mean()) ** 2).sum())
    shares = {}
    for factor in DESIGN:
        levels = [row[factor] for row in rows]
        means = {level: value[[one == level for one in levels]].mean() for level in set(levels)}
        among = float(sum((means[level] - value.mean()) ** 2 for level in levels))
        shares[factor] = 100 * among / total if total else float("nan")
    return {**shares, "interactions": 100 - sum(shares.values())}


def markdown(found: dict[str, Any]) -> str:
    """A table for every count, and what decides."""
    columns = list(itertools.product(AGGREGATIONS, (False, True)))
    lines = [
        f"{found['questions']} questions about {found['pictures']} pictures of {found['config']['task']}. Accuracy "
        "relative to all tokens in percent, 95 % bootstrap interval over pictures; with mass where a column says so.",
    ]
    by = {(r["importance"], r["aggregation"], r["mass"], r["count"]): Interval(**r["relative"]) for r in found["rows"]}
    for count in found["explained"]:
        heads = [f"{aggregation}{', mass' if mass else ''}" for aggregation, mass in columns]
        lines += ["", f"**{count} tokens**", "", "| importance | " + " | ".join(heads) + " |", "|---" * 7 + "|"]
        for importance in IMPORTANCES:
            cell = [by.get((importance, aggregation, mass, count)) for aggregation, mass in columns]
            if any(cell):
                lines.append(f"| {importance} | " + " | ".join("-" if one is None else str(one) for one in cell) + " |")
    lines += [
        "",
        "Share of the variance among the cells of a count that each factor explains by itself, in percent:",
        "",
    ]
    lines += ["| count | " + " | ".join((*DESIGN, "interactions")) + " |", "|---" * 5 + "|"]
    for count, shares in found["explained"].items():
        lines.append(f"| {count} | " + " | ".join(f"{share:.0f}" for share in shares.values()) + " |")
    return "\n".join(lines) + "\n"


def heat_map(found: dict[str, Any], path: Path | str) -> None:
    """One panel a count; importances in the order of their best cell at the least count."""
    counts = list(found["explained"])
    columns = list(itertools.product(AGGREGATIONS, (False, True)))
    by = {(r["importance"], r["aggregation"], r["mass"], r["count"]): r["relative"]["value"] for r in found["rows"]}
    here = [name for name in IMPORTANCES if any(key[0] == name for key in by)]
    order = sorted(here, key=lambda name: -max(by.get((name, a, m, counts[-1]), -1.0) for a, m in columns))
    figure = Figure(figsize=(4.3 * len(counts) + 1.5, 0.42 * len(order) + 2), layout="constrained")
    for place, count in enumerate(counts):
        axes = figure.add_subplot(1, len(counts), place + 1)
        grid = np.array([[by.get((name, a, m, count), np.nan) for a, m in columns] for name in order])
        drawn = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=20, vmax=100)
        for row, column in np.ndindex(grid.shape):
            shade = "white" if grid[row, column] < 65 else "black"
            axes.text(column, row, f"{grid[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=8)
        axes.set_xticks(
            range(len(columns)), [f"{a}{' + mass' if m else ''}" for a, m in columns], rotation=40, ha="right"
        )
        axes.set_yticks(range(len(order)), order if place == 0 else [""] * len(order))
        axes.set_title(f"{count} tokens")
    figure.colorbar(drawn, ax=figure.axes, label="accuracy relative to all tokens, %")
    figure.savefig(path, dpi=matplotlib.rcParams["figure.dpi"])
