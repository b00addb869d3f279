import pytest
import torch

from crtc.methods import HoloV
from crtc.methods.holov import shares, stretches
from tests.making import make_image


def test_stretches_are_equal_but_for_one() -> None:
    valid = torch.tensor([[True] * 7, [True] * 2 + [False] * 5])
    label = stretches(torch.arange(7).expand(2, 7), valid, 3)
    assert label[0].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert label[1, :2].tolist() == [0, 1]


def test_shares_are_rounded_down_and_the_largest_get_the_rest() -> None:
    assert shares(torch.tensor([[1.0, 4, 3]]), torch.tensor([4])).tolist() == [[0, 2, 2]]
    # as in the authors' code a whole part is rounded down too, since the sum is made a little larger
    assert shares(torch.tensor([[5.0, 3, 2]]), torch.tensor([4])).tolist() == [[2, 2, 0]]
    assert shares(torch.tensor([[6.0, 2]]), torch.tensor([3])).tolist() == [[3, 0]]


def test_every_crop_gets_its_share() -> None:
    # Crops of three tokens with 0.6 and 0.4 of the attention get 2 and 1 tokens; by attention alone one gets all.
    attention = [0.2, 0.19, 0.21, 0.17, 0.13, 0.1]
    tokens = make_image(torch.eye(6), columns=3, cls_attention=attention)
    assert HoloV(crops=2, alpha=0)(tokens, torch.tensor([3])).kept.tolist() == [0, 2, 3]
    assert HoloV(crops=1, alpha=0)(tokens, torch.tensor([3])).kept.tolist() == [0, 1, 2]


def test_variety_is_that_of_the_authors_formula() -> None:
    # Cosines of token 0 with 1 and 2 are 1 and 0, its own counts as 0: mean 1/2, variance (1/4 + 1/4 + 1/4) / 2.
    likeness = torch.tensor([[[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]])
    variety = HoloV().variety(likeness, torch.ones(1, 3, dtype=torch.bool))
    assert variety[0].tolist() == pytest.approx([0.375, 0.375, 0])


def test_what_a_crop_cannot_use_goes_to_the_others() -> None:
    tokens = make_image(torch.eye(4), columns=2, cls_attention=[0.5, 0.4, 0.04, 0.06])
    assert HoloV(crops=2)(tokens, torch.tensor([3])).kept.tolist() == [0, 1, 3]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "value"), [("crops", 0), ("alpha", -1.0)])
def test_refuses_impossible_settings(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        HoloV(**{name: value})  # type: ignore[arg-type]
