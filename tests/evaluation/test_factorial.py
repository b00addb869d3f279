"""The study of what decides: its cells, its shares, and that an interrupted run goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from crtc.evaluation import Evaluation
from crtc.evaluation.factorial import AGGREGATIONS, IMPORTANCES, cells, explained, factorial
from crtc.tasks.picture import Glyphs


def row(importance: str, aggregation: str, mass: bool, value: float) -> dict[str, Any]:
    relative = {"value": value, "low": value, "high": value}
    return {"importance": importance, "aggregation": aggregation, "mass": mass, "count": 8, "relative": relative}


def test_shares_of_what_each_factor_explains() -> None:
    design = [(i, a, m) for i in "xy" for a in "pq" for m in (False, True)]
    alone = explained([row(i, a, m, 50 + 10 * (i == "y")) for i, a, m in design])
    assert alone == pytest.approx({"importance": 100, "aggregation": 0, "mass": 0, "interactions": 0})
    both = explained([row(i, a, m, 50 + 6 * (i == "y") + 8 * m) for i, a, m in design])
    assert both == pytest.approx({"importance": 36, "aggregation": 0, "mass": 64, "interactions": 0})
    crossed = explained([row(i, a, m, 50 + 10 * ((i == "y") ^ m)) for i, a, m in design])
    assert crossed == pytest.approx({"importance": 0, "aggregation": 0, "mass": 0, "interactions": 100})


def test_every_cell_is_another_method() -> None:
    found = cells()
    assert len(found) == len(IMPORTANCES) * len(AGGREGATIONS)
    assert len({f"{label.partition(' / ')[0]} {method}" for label, method in found.items()}) == len(found)
    assert {label for label, method in found.items() if method.question_aware} == {
        f"text_relevance / {aggregation}" for aggregation in AGGREGATIONS
    }


def test_from_end_to_end(host: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Glyphs("calibration", 2, 2)
    table = factorial(host, task, tmp_path, counts=[16, 8])
    assert "**16 tokens**" in table and "**8 tokens**" in table and "| inverse_degree | " in table
    found = json.loads((tmp_path / "factorial.json").read_text())
    assert len(found["rows"]) == 12 * 3 * 2 * 2 and not found["skipped"]
    with Image.open(tmp_path / "heat.png") as drawn:
        assert drawn.size[0] > 300

    def never(*args: Any) -> None:
        raise AssertionError("it is finished")

    monkeypatch.setattr(Evaluation, "_batch", never)
    assert factorial(host, task, tmp_path, counts=[16, 8]) == table
