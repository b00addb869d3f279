"""Reports of made-up results: everything is in the table, and JSON stays JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crtc.evaluation.drawing import curves, overlay
from crtc.evaluation.evaluate import ALL, NO_IMAGE, WRONG_IMAGE, Results, Run
from crtc.evaluation.report import better_setting, compare, markdown, save, summary
from crtc.methods import KMeans
from crtc.retention import resamples
from tests.making import make_tokens

METHODS = ("random", "kmeans", "cross_modal", "reinforced_scorer", "reinforced_scorer blind")
AWARE = {
    "random": False,
    "kmeans": False,
    "cross_modal": True,
    "reinforced_scorer": True,
    "reinforced_scorer blind": False,
}
COUNTS = (64, 16)


def made_up(full: list[bool] | None = None, masses: tuple[bool, ...] = (False, True)) -> Results:
    """Eight questions about four pictures."""
    random = np.random.default_rng(0)

    def run(right: Any, recall: float) -> Run:
        return Run(np.asarray(right), random.random(8), random.random(8), np.full(8, recall), 1.5)

    everything = full if full is not None else [True] * 7 + [False]
    runs = {(name, False, 0): run(everything, np.nan) for name in (ALL, NO_IMAGE, WRONG_IMAGE)}
    for label in METHODS:
        for count in COUNTS:
            for mass in masses:
                runs[label, mass, count] = run(random.random(8) < 0.6 + 0.2 * mass, 0.25)
    config = {"task": "made-up", "methods": {label: label for label in METHODS}}
    return Results(
        runs, np.repeat(np.arange(4), 2), ("color", "count") * 4, dict(AWARE), {"tired": "the host sleeps"}, config
    )


def refuse(name: str) -> float:
    raise AssertionError(f"JSON holds {name}")


@pytest.mark.parametrize("masses", [(False, True), (True,), (False,)])
def test_every_method_and_count_is_in_the_table(masses: tuple[bool, ...]) -> None:
    results = made_up(masses=masses)
    table = markdown(results)
    assert "| method | sees question | mass | 64 | 16 | KL at 16 | tokens read |" in table
    for label in METHODS:
        rows = [
            line for line in table.splitlines() if line.startswith(f"| {label} | {'yes' if AWARE[label] else 'no'} |")
        ]
        assert len(rows) == len(masses)
        for row in rows:
            assert len(row.split("|")) == 9 and "nan" not in row
    assert "tired was skipped: the host sleeps." in table
    assert (
        "**reinforced_scorer** minus the best other" in table
        and "**reinforced_scorer blind** minus the best other" in table
    )
    assert "| method | color | count |" in table and "| questions | 4 | 4 |" in table
    for line in table.splitlines():  # every table is whole
        if line.startswith("|---"):
            assert set(line) <= {"|", "-"}


@pytest.mark.parametrize("full", [None, [False] * 8], ids=["some right", "none right"])
def test_json_has_no_nan(full: list[bool] | None, tmp_path: Path) -> None:
    results = made_up(full)
    said = save(results, tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    json.dumps(said, allow_nan=False)  # what others write down holds none either
    assert stored == json.loads(json.dumps(said))
    assert stored["questions"] == 8 and stored["pictures"] == 4 and stored["skipped"] == results.skipped
    assert len(stored["rows"]) == len(results.runs)
    assert {(row["method"], row["count"]) for row in stored["rows"] if row["count"]} == {
        (label, count) for label in METHODS for count in COUNTS
    }
    assert stored["rows"][0]["evidence_recall"] is None and stored["rows"][3]["evidence_recall"] == 0.25
    assert (tmp_path / "table.md").read_text() == markdown(results)
    curves(said, tmp_path / "curves.png")
    arrays = np.load(tmp_path / "questions.npz")
    assert np.array_equal(arrays["kmeans|mass|16"], results.runs["kmeans", True, 16].right)
    assert arrays["picture"].tolist() == results.picture.tolist() and arrays["family"].tolist() == list(results.family)


def test_figures_of_one_row() -> None:
    results = made_up([True] * 6 + [False] * 2)
    right = np.array([True, True, True, False, False, False, True, False])
    run = Run(right, np.arange(8.0), np.full(8, 0.5), np.array([1.0, 0.0, *[np.nan] * 6]), 2.0)
    results.runs["kmeans", True, 16] = run
    row = next(r for r in summary(results)["rows"] if (r["method"], r["mass"], r["count"]) == ("kmeans", True, 16))
    assert row["accuracy"] == 50 and row["relative"]["value"] == pytest.approx(100 * 4 / 6)
    assert row["relative"]["low"] <= row["relative"]["value"] <= row["relative"]["high"]
    assert row["agreement"] == 50 and row["kl_mean"] == 3.5 and row["kl_p90"] == pytest.approx(6.3)
    assert row["harmful_flips"] == pytest.approx(37.5) and row["lucky_flips"] == pytest.approx(12.5)
    assert row["evidence_recall"] == 0.5 and row["planning_ms"] == 2.0
    assert row["families"] == {
        "color": {"accuracy": 75.0, "questions": 4},
        "count": {"accuracy": 25.0, "questions": 4},
    }


def test_learned_rows_meet_their_equals_alone() -> None:
    results = made_up()
    found = compare(results, resamples(results.picture))
    rivals = {learned: {e["against"] for e in found if e["learned"] == learned} for learned in METHODS[3:]}
    assert rivals == {
        "reinforced_scorer": {"random", "kmeans", "cross_modal"},
        "reinforced_scorer blind": {"random", "kmeans"},
    }
    for entry in found:
        runs = [
            results.runs[label, better_setting(results, label, entry["count"]), entry["count"]]
            for label in (entry["learned"], entry["against"])
        ]
        gap = 100 * (runs[0].right.sum() - runs[1].right.sum()) / results.full().right.sum()
        assert entry["difference"]["value"] == pytest.approx(gap)


def test_better_setting() -> None:
    results = made_up()
    for label in METHODS:
        plain, mass = (results.runs[label, way, 16].right.mean() for way in (False, True))
        assert better_setting(results, label, 16) == (mass > plain)
    assert better_setting(made_up(masses=(True,)), "kmeans", 16)
    assert not better_setting(made_up(masses=(False,)), "kmeans", 16)


def test_curves_are_a_picture(tmp_path: Path) -> None:
    curves(summary(made_up()), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.format == "PNG" and drawn.size == (1760, 660)
        assert len(drawn.convert("RGB").getcolors(2**24) or []) > 50


@pytest.mark.parametrize("importance", [False, True])
def test_overlay_is_a_picture(importance: bool, tmp_path: Path) -> None:
    tokens = make_tokens([[(6, 8)]])
    plan = KMeans()(tokens, torch.tensor([7]))
    image = Image.effect_noise((160, 120), 40).convert("RGB")
    values = np.arange(len(tokens), dtype=np.float32) if importance else None
    overlay(image, tokens, plan, tmp_path / "overlay.png", importance=values, title="what?")
    with Image.open(tmp_path / "overlay.png") as drawn:
        width, height = drawn.size
        assert drawn.format == "PNG" and width == round(4.2 * (4 if importance else 3) * 110) and height == 517


def test_a_count_that_no_rival_can_spend_has_no_margin() -> None:
    """As beside methods inside the language model alone."""
    results = made_up()
    for key in [key for key in results.runs if key[2] == 16 and not key[0].startswith("reinforced_scorer")]:
        del results.runs[key]
    margins = markdown(results).partition("**reinforced_scorer** minus")[2].partition("**reinforced_scorer blind**")[0]
    assert [line.split("|")[1].strip() for line in margins.splitlines() if line.startswith("| ")][1:] == ["64"]


def test_a_scorer_that_was_given_meets_the_shipped_one() -> None:
    results = made_up()
    for (label, mass, count), run in list(results.runs.items()):
        if label.startswith("reinforced_scorer"):
            results.runs[f"{label} (given)", mass, count] = replace(run, right=~run.right)
            results.aware[f"{label} (given)"] = results.aware[label]
    found = {(entry["learned"], entry["against"]) for entry in compare(results, resamples(results.picture))}
    ours = {(f"{label} (given)", label) for label in ("reinforced_scorer", "reinforced_scorer blind")}
    assert ours == {pair for pair in found if pair[1].startswith("reinforced_scorer")}
    table = markdown(results)
    assert "What was given minus what ships" in table and "| reinforced_scorer blind (given) | " in table
    assert (
        "| reinforced_scorer |" not in table.partition("minus the best")[2].partition("What was given")[0]
    )  # as best other
    assert "What was given" not in markdown(made_up())


def test_the_untrained_one_meets_its_rivals_and_is_what_trained_ones_are_held_to() -> None:
    results = made_up()
    for (label, mass, count), run in list(results.runs.items()):
        if label == "random":
            results.runs["reinforced", mass, count] = replace(run, right=~run.right)
            results.aware["reinforced"] = False
    found = {(entry["learned"], entry["against"]) for entry in compare(results, resamples(results.picture))}
    assert {pair for pair in found if pair[0] == "reinforced"} == {("reinforced", "random"), ("reinforced", "kmeans")}
    assert {pair[0] for pair in found if pair[1] == "reinforced"} == {"reinforced_scorer", "reinforced_scorer blind"}
    table = markdown(results)
    assert "**reinforced** minus the best other" in table and "Other rows of ours minus **reinforced**" in table
    assert "What was given" not in table
