import pytest
import torch

from crtc.methods import HiPrune
from crtc.tokens import Tokens
from tests.making import make_image


def image(anchor: int, *, rows: int = 4, columns: int = 4) -> Tokens:
    """Attention that falls with the place in the deep layer, and one anchor in the shallow one."""
    num = rows * columns
    shallow = [0.0] * num
    shallow[anchor] = 1
    deep = [1 - place / num for place in range(num)]
    x = torch.randn(num, 4, generator=torch.Generator().manual_seed(0))
    return make_image(x, columns=columns, received_attention=deep, shallow_attention=shallow)


def test_anchor_buffers_and_registers() -> None:
    plan = HiPrune(alpha=0.8)(image(10), torch.tensor([7]))  # one anchor: 0.8 * 7 / 5 is nearest to 1
    assert plan.kept.tolist() == [0, 1, 6, 9, 10, 11, 14]
    assert plan.size.sum() == 16


def test_goes_on_at_the_end_of_a_row() -> None:
    assert HiPrune(alpha=1)(image(7), torch.tensor([5])).kept.tolist() == [3, 6, 7, 8, 11]


def test_beyond_the_image_is_its_corner() -> None:
    assert HiPrune(alpha=1)(image(13), torch.tensor([6])).kept.tolist() == [0, 9, 12, 13, 14, 15]


def test_as_many_anchors_as_have_room() -> None:
    # alpha 1 asks for 4 / 5, which rounds to one anchor with four buffers, but only four are kept
    assert HiPrune(alpha=1)(image(10), torch.tensor([4])).kept.tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_refuses_impossible_shares(alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha is {alpha}"):
        HiPrune(alpha=alpha)
