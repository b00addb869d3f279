import pytest
import torch

from crtc.methods import PruMerge, PruMergePlus
from crtc.tokens import apply
from tests.making import make_image

# Tokens 0 and 3 are attended; by their keys 1 is nearest to 0, 4 nearest to 3, 2 and 5 are far from both.
TOKENS = make_image(
    [[1.0], [2], [4], [8], [16], [32]],
    columns=3,
    cls_attention=[0.4, 0.1, 0.05, 0.3, 0.1, 0.05],
    keys=[[1.0, 0, 0], [1, 0.1, 0], [0.1, 0, 1], [0, 1, 0], [0.1, 1, 0], [0, 0, -1]],
)


def test_takes_in_its_neighbor_by_attention() -> None:
    plan = PruMerge(neighbors=1)(TOKENS, torch.tensor([2]))
    assert plan.kept.tolist() == [0, 3]
    assert apply(plan, TOKENS.x)[:, 0].tolist() == pytest.approx([1 + 0.1 * 2, 8 + 0.1 * 16])
    # 2 is nobody's neighbor and gives its mass only, as does 5, which is as far from both
    assert plan.slot.tolist() == [0, 0, 0, 1, 1, 0]
    assert plan.weight.tolist() == pytest.approx([1, 0.1, 0, 1, 0.1, 0])
    assert plan.size.tolist() == [4, 2]


def test_with_many_neighbors_all_are_taken_in() -> None:
    plan = PruMerge()(TOKENS, torch.tensor([1]))
    assert apply(plan, TOKENS.x).item() == pytest.approx(1 + 0.1 * 2 + 0.05 * 4 + 0.3 * 8 + 0.1 * 16 + 0.05 * 32)


def test_a_taken_neighbor_goes_to_the_next_token_whose_neighbor_it_is() -> None:
    # 1 is the one neighbor of both kept tokens and most like 0; 2 has 0 and 3 at the same distance but is no neighbor
    tokens = make_image(
        [[1.0], [2], [4]], cls_attention=[0.5, 0.2, 0.3], keys=[[1.0, 0], [1, 0.2], [0.9, 1]], columns=3
    )
    plan = PruMerge(neighbors=1)(tokens, torch.tensor([2]))
    assert plan.slot.tolist() == [0, 0, 1]
    assert apply(plan, tokens.x)[:, 0].tolist() == pytest.approx([1 + 0.2 * 2, 4])


def test_plus_keeps_even_steps_beside_the_attended() -> None:
    # 24 tokens: one attended token has steps of 24 // 1 // 3 = 8, two have 24 // 2 // 3 = 4 and with it 8 tokens.
    attention = [0.01] * 24
    attention[5], attention[22] = 0.5, 0.2
    tokens = make_image(torch.eye(24), columns=6, cls_attention=attention, keys=torch.eye(24).tolist())
    assert PruMergePlus()(tokens, torch.tensor([4])).kept.tolist() == [0, 5, 8, 16]
    assert PruMergePlus()(tokens, torch.tensor([8])).kept.tolist() == [0, 4, 5, 8, 12, 16, 20, 22]
    # what one attended token leaves is filled by attention, then by order
    assert PruMergePlus()(tokens, torch.tensor([6])).kept.tolist() == [0, 1, 5, 8, 16, 22]
    assert PruMergePlus()(tokens, torch.tensor([2])).kept.tolist() == [5, 22]


def test_plus_leaves_the_last_place_to_attention() -> None:
    # 9 tokens: from two attended ones on every place but the last is even.
    attention = [0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.06, 0.04]
    tokens = make_image(torch.eye(9), columns=3, cls_attention=attention, keys=torch.eye(9).tolist())
    assert PruMergePlus()(tokens, torch.tensor([8])).kept.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    # one attended token has steps of 3, and the rest is filled by attention
    assert PruMergePlus()(tokens, torch.tensor([5])).kept.tolist() == [0, 1, 2, 3, 6]


@pytest.mark.usefixtures("unchecked")
def test_refuses_no_neighbors() -> None:
    with pytest.raises(ValueError, match="neighbors is 0"):
        PruMerge(neighbors=0)
