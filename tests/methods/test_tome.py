import pytest
import torch

from crtc.methods import ToMe
from crtc.tokens import apply
from tests.making import make_image


def test_one_merge() -> None:
    # Even tokens 0 and 2, odd ones 1 and 3; the best pair is 2 with 1.
    tokens = make_image([[1.0, 0], [0, 4], [0, 2], [-1, 0]])
    plan = ToMe()(tokens, torch.tensor([3]))
    assert plan.kept.tolist() == [0, 1, 3]
    assert plan.slot.tolist() == [0, 1, 1, 2]
    assert apply(plan, tokens.x).tolist() == [[1, 0], [0, 3], [-1, 0]]
    assert plan.size.tolist() == [1, 2, 1]


def test_two_even_tokens_may_join_the_same() -> None:
    tokens = make_image([[1.0, 0], [2, 0], [3, 0], [0, 1]])
    plan = ToMe()(tokens, torch.tensor([2]))
    assert plan.slot.tolist() == [0, 0, 0, 1]
    assert apply(plan, tokens.x).tolist() == [[2, 0], [0, 1]]


def test_second_round_weighs_by_size() -> None:
    # Round one: 0 and 2 join 1. Round two goes over 1, 3: the triple joins 3, and counts three times.
    tokens = make_image([[1.0, 0], [2, 0], [3, 0], [1, 2]])
    plan = ToMe()(tokens, torch.tensor([1]))
    assert plan.kept.tolist() == [3]
    assert apply(plan, tokens.x).tolist() == [[1.75, 0.5]]
    assert plan.size.tolist() == [4]


def test_unmerged_even_tokens_come_before_odd_ones() -> None:
    # Round one merges 0 with 1 and 2 with 3. Round two goes over 4, 1, 3 and joins 4 to 1; in raster order it would go
    # over 1, 3, 4 and could only join something to 3.
    tokens = make_image([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0.6, 0, 0.8]])
    assert ToMe()(tokens, torch.tensor([3])).kept.tolist() == [1, 3, 4]
    assert ToMe()(tokens, torch.tensor([2])).slot.tolist() == [0, 0, 1, 1, 0]


def test_keys_decide_where_asked() -> None:
    tokens = make_image([[1.0, 0], [0, 4], [0, 2], [-1, 0]], keys=[[1.0, 0], [0, 1], [-1, 0.1], [1, 0]])
    plan = ToMe("keys")(tokens, torch.tensor([3]))
    assert plan.slot.tolist() == [2, 0, 1, 2]
    assert apply(plan, tokens.x)[2].tolist() == [0, 0]
    assert ToMe("keys").needs == {"keys"}
    assert ToMe().needs == frozenset()


@pytest.mark.usefixtures("unchecked")
def test_refuses_an_unknown_metric() -> None:
    with pytest.raises(ValueError, match="metric is 'queries'"):
        ToMe("queries")  # type: ignore[arg-type]
