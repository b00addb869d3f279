"""The study of thresholds: what is shown otherwise, and the study from end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from crtc.evaluation.geometries import GEOMETRIES, MOMENTS, FixedThreshold, Seen, geometries
from crtc.methods import Reinforced
from crtc.tasks.picture import Glyphs
from tests.making import make_image, make_tokens

K = torch.tensor([6])


def test_the_plan_is_of_the_tokens_as_they_are() -> None:
    tokens = make_tokens([[(5, 5)]])
    features = tokens.signals.features
    assert features is not None
    plan = Seen(Reinforced(), "before the projector")(tokens, K)
    shown = make_image(features[tokens.candidates])
    assert torch.equal(plan.slot[tokens.candidates], Reinforced()(shown, K).slot)
    assert not torch.equal(plan.slot, Reinforced()(tokens, K).slot)


@pytest.mark.parametrize("geometry", ["turned", "a hundred times as long"])
@pytest.mark.parametrize("method", [Reinforced(), FixedThreshold(0.5)])
def test_turning_and_scaling_change_no_plan(geometry: str, method: Reinforced) -> None:
    tokens = make_tokens([[(6, 6)]])
    plan, expected = Seen(method, geometry)(tokens, K), method(tokens, K)
    assert torch.equal(plan.slot, expected.slot)
    torch.testing.assert_close(plan.weight, expected.weight, atol=1e-4, rtol=1e-4)


def test_a_fixed_threshold_counts_cosines_above_it() -> None:
    image = make_image([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    weight = FixedThreshold(0.9).weight(image)[2][0]
    torch.testing.assert_close(weight, torch.tensor([0.5, 0.5, 1.0, 1.0]), atol=0.06, rtol=0)


def test_from_end_to_end(host: tuple[Any, Any], tmp_path: Path) -> None:
    table = geometries(host, Glyphs("calibration", 2, 2), tmp_path)
    rows = json.loads((tmp_path / "geometries.json").read_text())["rows"]
    assert {row["geometry"] for row in rows} == set(GEOMETRIES) and len(rows) == (5 + 5 * 2 - 1) * 3
    for row in rows:
        if row["form"] == MOMENTS:
            assert row["moments_minus_this"]["value"] == 0
    assert "| turned | own moments | " in table
