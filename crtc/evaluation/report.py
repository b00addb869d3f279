"""Results as JSON and as Markdown tables."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crtc.evaluation.evaluate import ALL, NO_IMAGE, WRONG_IMAGE, Results, Run
from crtc.retention import Bools, Floats, Interval, Resamples, difference, flips, ratio, resamples

OURS, UNTRAINED = "reinforced", "reinforced"
"""How the labels of our methods begin, and the label of the one that is not trained."""


def summary(results: Results) -> dict[str, Any]:
    """Every figure of an evaluation with its interval, ready for JSON."""
    draws = resamples(results.picture)
    full = results.full()
    rows = []
    for (label, mass, count), run in results.runs.items():
        rows.append(
            {
                "method": label,
                "mass": mass,
                "count": count,
                "layer_equivalent": run.layer_equivalent,
                "question_aware": results.aware.get(label),
                "accuracy": 100 * float(run.right.mean()),
                "relative": vars(ratio(run.right, full.right, draws)),
                "agreement": 100 * float(run.agree.mean()),
                "kl_mean": float(run.kl.mean()),
                "kl_p90": float(np.percentile(run.kl, 90)),
                "harmful_flips": flips(full.right, run.right)[0],
                "lucky_flips": flips(full.right, run.right)[1],
                "evidence_recall": _mean(run.recall),
                "planning_ms": run.milliseconds,
                "families": {
                    family: {"accuracy": 100 * float(run.right[chosen].mean()), "questions": int(chosen.sum())}
                    for family, chosen in _families(results).items()
                },
            }
        )
    return {
        "config": results.config,
        "questions": len(full.right),
        "pictures": len(np.unique(results.picture)),
        "skipped": results.skipped,
        "rows": rows,
        "differences": compare(results, draws),
    }


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _families(results: Results) -> dict[str, Bools]:
    names = np.array(results.family)
    return {family: names == family for family in dict.fromkeys(sorted(results.family))}


def better_setting(results: Results, label: str, count: int) -> bool:
    """Whether mass preservation serves a method better at a count."""
    plain, mass = results.runs.get((label, False, count)), results.runs.get((label, True, count))
    if plain is None or mass is None:
        return mass is not None
    return bool(mass.right.mean() > plain.right.mean())


def compare(results: Results, draws: Resamples) -> list[dict[str, Any]]:
    """Our rows against every other one that sees as much, our other rows against the plain untrained one, and those of
    a scorer that was given against the shipped one, each at its better setting, paired by question.
    """
    full = results.full().right
    found = []
    for learned in (label for label in results.labels if label.startswith(OURS)):
        for label in results.labels:
            mine = learned.startswith(f"{label} (") or (label == UNTRAINED and learned != UNTRAINED)
            if label.startswith(OURS) and not mine:
                continue
            if results.aware[label] and not results.aware[learned]:
                continue
            for count in results.counts:
                if not (results.able(learned, count) and results.able(label, count)):
                    continue
                ours = results.runs[learned, better_setting(results, learned, count), count]
                theirs = results.runs[label, better_setting(results, label, count), count]
                found.append(
                    {
                        "learned": learned,
                        "against": label,
                        "count": count,
                        "difference": vars(difference(ours.right, theirs.right, full, draws)),
                    }
                )
    return found


def markdown(results: Results) -> str:
    """Retention at every count, plain and mass-preserving side by side, controls first; then families and margins."""
    draws = resamples(results.picture)
    full = results.full()
    counts = results.counts
    masses = sorted({mass for _, mass, count in results.runs if count})
    lines = [
        f"{len(full.right)} questions about {len(np.unique(results.picture))} pictures of {results.config['task']}. "
        "Accuracy relative to all tokens in percent, 95 % bootstrap interval over pictures; all rows of a column "
        "spend that many tokens per image in the mean over the layers of the language model, or as many as the last "
        "column tells; a dash where a method cannot spend as little.",
        "",
        "| method | sees question | mass | "
        + " | ".join(map(str, counts))
        + " | KL at "
        + str(counts[len(counts) // 2])
        + " | tokens read |",
        "|---|---|---|" + "---|" * (len(counts) + 2),
    ]
    for label in (label for label in (ALL, NO_IMAGE, WRONG_IMAGE) if (label, False, 0) in results.runs):
        control = results.runs[label, False, 0]
        cell = _cell(control, full, draws) if label != ALL else f"{100 * full.right.mean():.1f} % right"
        lines.append(f"| *{label}* | | | " + " | ".join([cell] * len(counts)))
        lines[-1] += f" | {control.kl.mean():.3f} | {_read([control])} |"
    for label in results.labels:
        for mass in masses:
            runs = [results.runs.get((label, mass, count)) for count in counts]
            if not any(runs):
                continue
            cells = ["-" if run is None else _cell(run, full, draws) for run in runs]
            middle = runs[len(counts) // 2]
            aware = "yes" if results.aware[label] else "no"
            lines.append(
                f"| {label} | {aware} | {'kept' if mass else 'plain'} | "
                + " | ".join(cells)
                + (" | - |" if middle is None else f" | {middle.kl.mean():.3f} |")
                + f" {_read(runs)} |"
            )
    for label, reason in results.skipped.items():
        lines.append(f"\n{label} was skipped: {reason}.")
    return "\n".join([*lines, "", *_margins(results, draws), *_details(results), "", *_family_table(results)]) + "\n"


def _read(runs: Sequence[Run | None]) -> str:
    """Layer-equivalent tokens of some runs."""
    known = [None if run is None or math.isnan(run.layer_equivalent) else run.layer_equivalent for run in runs]
    return " / ".join("-" if tokens is None else f"{tokens:.1f}".removesuffix(".0") for tokens in known)


def _cell(run: Run, full: Run, draws: Resamples) -> str:
    return str(ratio(run.right, full.right, draws))


def _margins(results: Results, draws: Resamples) -> list[str]:
    """Our rows minus the best of the others, and minus each other, paired."""
    lines: list[str] = []
    differences = compare(results, draws)
    others = [entry for entry in differences if not entry["against"].startswith(OURS)]
    untrained = [entry for entry in differences if entry["against"] == UNTRAINED]
    shipped = [entry for entry in differences if entry not in others and entry not in untrained]
    for learned in dict.fromkeys(entry["learned"] for entry in others):
        lines += [
            f"**{learned}** minus the best other method that sees as much, in points of relative accuracy, "
            "both at their better setting:",
            "",
            "| count | best other | difference |",
            "|---|---|---|",
        ]
        for count in results.counts:
            rivals = [entry for entry in others if entry["learned"] == learned and entry["count"] == count]
            if not rivals:  # none can spend as little
                continue
            closest = min(rivals, key=lambda entry: entry["difference"]["value"])
            lines.append(f"| {count} | {closest['against']} | {Interval(**closest['difference'])} |")
        lines.append("")
    lines += _own_margins("Other rows of ours minus **reinforced**", untrained, results.counts)
    lines += _own_margins("What was given minus what ships", shipped, results.counts)
    return lines


def _own_margins(title: str, entries: list[dict[str, Any]], counts: Sequence[int]) -> list[str]:
    """Differences among our own rows, one line each."""
    if not entries:
        return []
    lines = [f"{title}, in the same points:", ""]
    lines += ["| row | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    for learned in dict.fromkeys(entry["learned"] for entry in entries):
        found = {entry["count"]: entry["difference"] for entry in entries if entry["learned"] == learned}
        cells = [str(Interval(**found[count])) if count in found else "-" for count in counts]
        lines.append(f"| {learned} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _details(results: Results) -> list[str]:
    """All other measures at the second smallest count."""
    full = results.full().right
    count = results.counts[-2:][0]
    lines = [
        f"At {count} tokens, each method at its better setting: top-1 agreement with all tokens and flips "
        "(right to wrong, wrong to right) in percent, KL to all tokens in nats, evidence recall, and planning "
        "time per picture:",
        "",
        "| method | mass | agreement | KL mean | KL p90 | harmful | lucky | evidence recall | ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label in (label for label in results.labels if results.able(label, count)):
        mass = better_setting(results, label, count)
        run = results.runs[label, mass, count]
        harmful, lucky = flips(full, run.right)
        recall = _mean(run.recall)
        lines.append(
            f"| {label} | {'kept' if mass else 'plain'} | {100 * run.agree.mean():.1f} | {run.kl.mean():.3f} | "
            f"{np.percentile(run.kl, 90):.3f} | {harmful:.1f} | {lucky:.1f} | "
            f"{'-' if recall is None else f'{recall:.2f}'} | {run.milliseconds:.1f} |"
        )
    return lines


def _family_table(results: Results) -> list[str]:
    """Accuracy per question family at the smallest count, each method at its better setting."""
    families = _families(results)
    count = results.counts[-1]
    lines = [
        f"Accuracy per question family in percent, with all tokens and at {count}, each method at its better setting:",
        "",
        "| method | " + " | ".join(families) + " |",
        "|---|" + "---|" * len(families),
        "| questions | " + " | ".join(str(int(chosen.sum())) for chosen in families.values()) + " |",
    ]
    rows = {ALL: results.full(), NO_IMAGE: results.runs[NO_IMAGE, False, 0]}
    rows |= {
        label: results.runs[label, better_setting(results, label, count), count]
        for label in results.labels
        if results.able(label, count)
    }
    for label, run in rows.items():
        lines.append(
            f"| {label} | " + " | ".join(f"{100 * run.right[chosen].mean():.1f}" for chosen in families.values()) + " |"
        )
    return lines


def save(results: Results, folder: Path | str) -> dict[str, Any]:
    """Write `results.json`, `table.md` and `questions.npz` (one entry per question and row); give the summary."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    said: dict[str, Any] = finite(summary(results))
    (folder / "results.json").write_text(json.dumps(said, indent=1) + "\n")
    (folder / "table.md").write_text(markdown(results))
    arrays: dict[str, Any] = {
        f"{label}|{'mass' if mass else 'plain'}|{count}": run.right
        for (label, mass, count), run in results.runs.items()
    }
    arrays |= {"picture": results.picture, "family": np.array(results.family)}
    np.savez_compressed(folder / "questions.npz", **arrays)
    return said


def finite(value: Any) -> Any:
    """The value with None in the place of what is not finite: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
