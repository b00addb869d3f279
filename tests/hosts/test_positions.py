"""Positions of what is left, in one dimension and in three."""

import pytest
import torch

from crtc.hosts import columns, encode, shorten
from crtc.hosts.positions import shortened_positions
from crtc.merging import make_plan
from crtc.tokens import DROPPED, Groups
from tests.hosts.families import build

VALID = torch.tensor([[True, True, True, True, True, True, False]])
ORDER = torch.tensor([[0, 2, 5, -1]])


def test_one_dimension_by_hand():
    full = torch.tensor([[3, 4, 5, 6, 7, 8, 0]])
    assert shortened_positions(full, VALID, ORDER, "keep").tolist() == [[3, 5, 8, 3]]
    assert shortened_positions(full, VALID, ORDER, "repack").tolist() == [[3, 4, 5, 3]]


def test_time_row_and_column_by_hand():
    """A word, a picture of two rows and two columns of which the lower right patch stays, a word."""
    turning = torch.tensor([[[0, 1, 1, 1, 1, 3, 9]], [[0, 1, 1, 2, 2, 3, 9]], [[0, 1, 2, 1, 2, 3, 9]]])
    order = torch.tensor([[0, 4, 5, -1]])
    kept = [[[0, 1, 3, 3]], [[0, 2, 3, 3]], [[0, 2, 3, 3]]]
    assert shortened_positions(turning, VALID, order, "keep").tolist() == kept
    assert shortened_positions(turning, VALID, order, "repack").tolist() == kept  # 1 still stands for time
    with_text = torch.cat([torch.tensor([[[0, 1, 2, 3, 4, 5, 0]]]), turning])
    assert shortened_positions(with_text, VALID, order, "keep").tolist() == [[[0, 1, 2, 3]], *kept]
    first = torch.tensor([[0, 1, 5, -1]])  # the upper left patch alone: nothing has 2 any more
    assert shortened_positions(turning, VALID, first, "repack").tolist() == [[[0, 1, 2, 3]]] * 3


def test_fractions_are_moved_whole():
    full = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.5, 0.0]])
    assert shortened_positions(full, VALID, ORDER, "repack").tolist() == [[0.0, 1.0, 2.5, 3.0]]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_given_positions_are_packed_too(name):
    host = build(name)
    inputs = host.inputs(rows=((0,),))
    length = inputs["input_ids"].shape[1]
    given = torch.arange(10, 10 + length)[None]
    encoded = encode(host.model, {**inputs, "position_ids": given})
    groups = Groups.of(encoded.tokens)
    owner = torch.full_like(groups.index, DROPPED)
    owner[:, 2] = 2
    plan = make_plan(encoded.tokens, groups, owner, (owner >= 0).double())
    order = columns(encoded, plan)
    kept = shorten(encoded, plan, mass=False, positions="keep")["position_ids"]
    assert torch.equal(kept, order + 10)
    packed = shorten(encoded, plan, mass=False, positions="repack")["position_ids"]
    assert torch.equal(packed, torch.arange(10, 10 + order.shape[1])[None])
