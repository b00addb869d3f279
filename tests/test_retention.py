"""Retention on answers small enough to work out by hand."""

import math

import numpy as np
import pytest
import torch

from crtc.retention import Interval, Resamples, difference, evidence_recall, flips, kl_divergence, ratio, resamples
from crtc.tokens import Plan
from tests.making import make_image, make_tokens

VIEW = (0.0, 0.0, 20.0, 20.0)
BOX = (0.0, 0.0, 15.0, 10.0)
"""On four patches of 10 x 10 pixels: all of the first and half of the second, 100 and 50 pixels."""


def plan_of(kept: list[int], slot: list[int], weight: list[float], group: list[int] | None = None) -> Plan:
    size = torch.bincount(torch.tensor(slot)[torch.tensor(slot) >= 0], minlength=len(kept)).float()
    owner = group if group is not None else [0] * len(slot)
    return Plan(torch.tensor(kept), torch.tensor(slot), torch.tensor(weight), size, torch.tensor(owner))


def test_kl_of_two_coins() -> None:
    teacher = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]).clamp(min=1e-30).log()
    logits = torch.tensor([[0.25, 0.75], [0.25, 0.75], [0.5, 0.5]]).log() + 7  # logits are free up to a constant
    found = kl_divergence(teacher, logits)
    torch.testing.assert_close(found, torch.tensor([0.5 * math.log(4 / 3), 0.0, math.log(2)]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param(plan_of([0, 1, 2, 3], [0, 1, 2, 3], [1, 1, 1, 1]), 1.0, id="all kept"),
        pytest.param(plan_of([0, 3], [0, -1, 1, 1], [1, 0, 0, 1]), 100 / 150, id="half patch dropped"),
        pytest.param(plan_of([0, 3], [0, 0, 1, 1], [1, 0, 0, 1]), 100 / 150, id="half patch gives mass alone"),
        pytest.param(plan_of([0, 3], [0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]), 1.0, id="evidence merged with evidence"),
        pytest.param(plan_of([0, 1], [0, 1, 0, 1], [0.5, 1, 0.5, 0]), 100 / 150, id="half background in one slot"),
        pytest.param(plan_of([3], [0, 0, 0, 0], [0.25] * 4), 0.5, id="one slot for everything"),
        pytest.param(plan_of([2], [-1, -1, 0, 0], [0, 0, 1, 0]), 0.0, id="all evidence dropped"),
    ],
)
def test_evidence_recall(plan: Plan, expected: float) -> None:
    tokens = make_image(torch.zeros(4, 2), columns=2)
    assert evidence_recall(tokens, plan, [(BOX,)], [VIEW]).tolist() == pytest.approx([expected])


def test_evidence_of_every_group_is_its_own() -> None:
    tokens = make_tokens([[(2, 2)], [(2, 2)], [(2, 2)]], num_text=1)
    kept = tokens.candidates.nonzero()[:, 0][torch.tensor([0, 5, 8])]
    slot = torch.full((len(tokens),), -1)
    slot[kept] = torch.arange(3)
    plan = Plan(kept, slot, (slot >= 0).float(), torch.ones(3), tokens.group)
    recall = evidence_recall(tokens, plan, [(BOX,), (BOX, (0.0, 10.0, 5.0, 20.0)), ()], [VIEW] * 3)
    assert recall[:2].tolist() == pytest.approx([100 / 150, 50 / 200])
    assert math.isnan(recall[2])


def test_evidence_of_groups_of_other_grids() -> None:
    tokens = make_tokens([[(2, 2)], [(4, 4)]])
    kept = tokens.candidates.nonzero()[:, 0][torch.tensor([3, 4])]
    slot = torch.full((len(tokens),), -1)
    slot[kept] = torch.arange(2)
    plan = Plan(kept, slot, (slot >= 0).float(), torch.ones(2), tokens.group)
    last = (10.0, 10.0, 20.0, 20.0)
    assert evidence_recall(tokens, plan, [(last,), (last,)], [VIEW] * 2).tolist() == [1, 0]


def test_evidence_that_two_boxes_cover_counts_once() -> None:
    tokens = make_image(torch.zeros(4, 2), columns=2)
    plan = plan_of([1], [-1, 0, -1, -1], [0, 1, 0, 0])
    boxes = (BOX, (0.0, 0.0, 12.0, 10.0), (10.0, 5.0, 20.0, 20.0))  # 100 and 75 pixels above, 100 at the bottom right
    assert evidence_recall(tokens, plan, [boxes], [VIEW]).tolist() == pytest.approx([75 / 275])


def test_evidence_counts_in_the_part_of_a_picture_that_the_host_saw() -> None:
    """The middle 20 x 20 of a picture of 40 x 20: the box lies ten pixels further right."""
    tokens = make_image(torch.zeros(4, 2), columns=2)
    plan = plan_of([0, 3], [0, -1, 1, 1], [1, 0, 0, 1])
    moved = (BOX[0] + 10, BOX[1], BOX[2] + 10, BOX[3])
    assert evidence_recall(tokens, plan, [(moved,)], [(10.0, 0.0, 30.0, 20.0)]).tolist() == pytest.approx([100 / 150])
    unseen = evidence_recall(tokens, plan, [((0.0, 0.0, 9.0, 20.0),)], [(10.0, 0.0, 30.0, 20.0)])
    assert math.isnan(unseen[0])


def test_resamples_draw_whole_pictures() -> None:
    owner = np.array([4, 4, 7, 7, 7, 9])
    draws = resamples(owner, count=1200, seed=3)
    weights = np.stack([draws.sums(np.eye(6)[number]) for number in range(6)], 1)
    assert weights.shape == (1200, 6)
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 2], weights[:, 3]) and np.array_equal(weights[:, 2], weights[:, 4])
    assert np.array_equal(weights[:, [0, 2, 5]].sum(1), np.full(1200, 3.0))
    assert np.array_equal(draws.drawn, np.random.default_rng(3).multinomial(3, [1 / 3] * 3, size=1200))
    values = np.array([0.5, -1, 2, 0, 3, 1])
    np.testing.assert_allclose(draws.sums(values), weights @ values)
    assert abs(weights.mean() - 1) < 0.1


def test_ratio_of_one_picture_has_no_width() -> None:
    part, whole = np.array([True, False, True, False]), np.array([True, True, True, False])
    draws = resamples(np.zeros(4, dtype=int), count=50)
    assert ratio(part, whole, draws) == Interval(*[pytest.approx(200 / 3)] * 3)
    assert difference(part, whole, whole, draws) == Interval(*[pytest.approx(-100 / 3)] * 3)
    assert difference(part, part, whole, draws) == Interval(0.0, 0.0, 0.0)


def test_ratio_over_pictures() -> None:
    part, whole = np.array([True, False]), np.array([True, True])
    draws = Resamples(np.array([[2, 0], [1, 1], [0, 2]], np.uint8), np.array([0, 1]))
    found = ratio(part, whole, draws)
    assert (found.value, found.low, found.high) == pytest.approx((50.0, 2.5, 97.5))
    assert str(found) == "50.0 [2.5, 97.5]"


def test_ratio_to_nothing_is_unknown() -> None:
    nothing = ratio(np.array([True]), np.array([False]), resamples(np.zeros(1, dtype=int), count=3))
    assert all(map(math.isnan, (nothing.value, nothing.low, nothing.high)))


def test_flips() -> None:
    full = np.array([True, True, True, False, False])
    assert flips(full, np.array([True, False, False, True, False])) == (40.0, 20.0)
    assert flips(full, full) == (0.0, 0.0)
