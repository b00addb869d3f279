import torch

from crtc.methods import ClsAttention
from crtc.tokens import apply
from tests.making import make_image


def test_keeps_the_highest_in_raster_order() -> None:
    tokens = make_image([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]], cls_attention=[0.1, 0.4, 0.2, 0.3])
    plan = ClsAttention()(tokens, torch.tensor([2]))
    assert plan.kept.tolist() == [1, 3]
    assert torch.equal(apply(plan, tokens.x), tokens.x[[1, 3]])


def test_dropped_mass_goes_to_the_most_similar() -> None:
    tokens = make_image([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]], cls_attention=[0.4, 0.3, 0.2, 0.1])
    plan = ClsAttention()(tokens, torch.tensor([2]))
    assert plan.slot.tolist() == [0, 1, 0, 1]
    assert plan.size.tolist() == [2, 2]


def test_ties_go_to_the_earlier_token() -> None:
    tokens = make_image(torch.eye(3), cls_attention=[0.2, 0.2, 0.2])
    assert ClsAttention()(tokens, torch.tensor([2])).kept.tolist() == [0, 1]
