import pytest
import torch

from crtc.methods import ClsAttention, MaximalMarginalRelevance
from tests.making import make_golden, make_image


def test_a_copy_gives_way() -> None:
    tokens = make_image([[1.0, 0], [1, 0.01], [0, 1]], cls_attention=[1.0, 0.9, 0.1])
    assert MaximalMarginalRelevance()(tokens, torch.tensor([2])).kept.tolist() == [0, 2]


def test_saliency_alone() -> None:
    tokens, k = make_golden(0), torch.tensor([30])
    alone = MaximalMarginalRelevance(trade=1.0)(tokens, k)
    assert alone.kept.tolist() == ClsAttention()(tokens, k).kept.tolist()


def test_refuses_impossible_settings() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        MaximalMarginalRelevance(trade=1.5)
