import pytest
import torch

from crtc.methods import IDSelection
from tests.making import make_image

# Two pairs of copies; attention scaled to [0, 1] is 1, 0.9, 0.4, 0.
TOKENS = make_image([[1.0, 0], [1, 0], [0, 1], [0, 1]], cls_attention=[0.5, 0.46, 0.26, 0.1])


def test_copies_of_a_kept_token_fall_behind() -> None:
    assert IDSelection()(TOKENS, torch.tensor([2])).kept.tolist() == [0, 2]


def test_without_distance_the_order_is_that_of_the_attention() -> None:
    # gamma 0 takes the kept token's score off all alike
    assert IDSelection(gamma=0)(TOKENS, torch.tensor([2])).kept.tolist() == [0, 1]


def test_negative_scores_suppress_nothing() -> None:
    # after 0 and 2 the scores are -0.1 and -0.4
    plan = IDSelection()(TOKENS, torch.tensor([3]))
    assert plan.kept.tolist() == [0, 1, 2]
    assert plan.size.sum() == 4


@pytest.mark.usefixtures("unchecked")
def test_refuses_a_negative_gamma() -> None:
    with pytest.raises(ValueError, match=r"gamma is -1"):
        IDSelection(gamma=-1)
