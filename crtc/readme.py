"""Keeps the figures of the README equal to the committed results: each stands between two marks and is generated.

`python -m crtc.readme` rewrites them; a test compares.
"""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from crtc.cli import methods
from crtc.evaluation.evaluate import ALL, NO_IMAGE, WRONG_IMAGE
from crtc.evaluation.report import OURS
from crtc.retention import Interval

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "crtc/hosts/glyphs_llava/README.md", ROOT / "docs/reinforcement.md")
"""What holds generated blocks."""
SHOWN = {
    *{ALL, NO_IMAGE, WRONG_IMAGE, "random", "uniform_grid", "pool", "cls_attention", "cross_modal_similarity", "fastv"},
    *{"pyramid_drop", "sparsevlm", "tome", "vision_zip", "kmeans", "dpc_knn", "dbdpc", "agglomerative", "div_prune"},
    *{"maximal_marginal_relevance", "scope", "cdpruner", "mmtok", "gprune", "personalized_page_rank"},
    *{"learn_pruner", "vision_selector", "diff_prune", "reinforced", "reinforced_scorer", "reinforced_scorer blind"},
}
"""Rows of the README's table; the file that it is cut from has all."""


def blocks() -> dict[str, str]:
    """Text of every generated block by its name."""
    listing = io.StringIO()
    with redirect_stdout(listing):
        methods(markdown=True)
    found = {"methods": listing.getvalue()}
    tables = {
        "retention": "results/test/table.md",
        "ablation": "results/ablation/table.md",
        "hosts": "results/hosts/table.md",
        "benchmark": "results/benchmark/table.md",
        "photographs": "results/photographs/table.md",
        "geometries": "results/geometries/table.md",
        "authors": "results/benchmark/authors.md",
    }
    for name, file in tables.items():
        if (ROOT / file).exists():
            found[name] = (ROOT / file).read_text()
    if "benchmark" in found:
        found["benchmark"] = found["benchmark"].partition("\n\n| method | planning")[0]
    if "retention" in found:
        found["retention"] = cut(found["retention"])
    untrained = ROOT / "results/untrained/table.md"
    if untrained.exists():
        found["untrained"] = untrained.read_text().partition("\n\n**")[0]
    residual = ROOT / "results/residual/table.md"
    if residual.exists():
        found["residual"] = residual.read_text().partition("\n\nAt ")[0].partition("\n\n")[2]
    factorial = ROOT / "results/factorial/table.md"
    if factorial.exists():
        found["decides"] = "".join(factorial.read_text().rpartition("Share of the variance")[1:])
    mlp = ROOT / "results/mlp/table.md"
    if mlp.exists():
        found["mlp"] = with_mass(mlp.read_text())
    for name, folder, make in (("host", "host", host_card), ("headline", "test", headline)):
        results = ROOT / "results" / folder / "results.json"
        if results.exists():
            found[name] = make(json.loads(results.read_text()))
    return found


def cut(table: str) -> str:
    """The retention table up to the margins, of the methods that the README shows."""
    lines = table.partition("\nAt ")[0].splitlines()
    results = [line for line in lines if line.count("|") > 4]
    shown = [line for line in results[2:] if line.split("|")[1].strip(" *") in SHOWN]
    return "\n".join(line for line in lines if line not in results[2:] or line in shown)


def with_mass(table: str) -> str:
    """The rows of a retention table that keep mass, with its first two lines, and what was given minus what ships."""
    rows, _, margins = table.partition("\nAt ")[0].partition("\nWhat was given")
    lines = [line for line in rows.splitlines() if line.count("|") > 4]
    kept = [line for line in lines if line.split("|")[3].strip() == "kept"]
    return "\n".join([*lines[:2], *kept, "", f"What was given{margins}"])


def headline(summary: dict[str, Any]) -> str:
    """Relative accuracy of the scorer and of the best other method at every count, all at their better setting."""
    rows = [row for row in summary["rows"] if row["count"]]
    counts = sorted({row["count"] for row in rows}, reverse=True)
    learned = {"reinforced_scorer": "trained", "reinforced_scorer blind": "trained, without the question"}

    def cell(chosen: list[dict[str, Any]]) -> str:
        best = max(chosen, key=lambda row: row["accuracy"])
        told = "" if best["method"] in learned else f" ({best['method']})"
        return f"{Interval(**best['relative'])}{told}"

    lines = ["| visual tokens, of 576 | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    for label, name in learned.items():
        cells = [cell([row for row in rows if row["method"] == label and row["count"] == n]) for n in counts]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    others = [cell([row for row in rows if not row["method"].startswith(OURS) and row["count"] == n]) for n in counts]
    lines.append(
        f"| best of {len({row['method'] for row in rows if not row['method'].startswith(OURS)})} others | "
        + " | ".join(others)
        + " |"
    )
    return "\n".join(lines)


def host_card(summary: dict[str, Any]) -> str:
    """Accuracy of the host with all tokens, per question family."""
    full = next(row for row in summary["rows"] if row["method"] == ALL)
    lines = ["| family | questions | accuracy, % |", "|---|---|---|"]
    for family, entry in full["families"].items():
        lines.append(f"| {family} | {entry['questions']} | {entry['accuracy']:.1f} |")
    lines.append(f"| all | {summary['questions']} | {full['accuracy']:.1f} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """`text` with every marked block made anew."""
    for name, content in blocks().items():
        head, mark, rest = text.partition(f"<!-- {name} -->\n")
        if mark:
            text = f"{head}{mark}{content.strip()}\n<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        if document.exists():
            document.write_text(filled(document.read_text()))
            print(f"wrote {document}")
