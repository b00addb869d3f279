"""From `keep` or `count` to whole tokens."""

import pytest
import torch

from crtc.counts import check, resolve


def test_keep_rounds_and_leaves_one():
    sizes = torch.tensor([576, 10, 3, 1])
    assert resolve(sizes, keep=1 / 9).tolist() == [64, 1, 1, 1]
    assert resolve(sizes, keep=0.5).tolist() == [288, 5, 2, 1]
    assert resolve(sizes, keep=1.0).tolist() == [576, 10, 3, 1]
    assert resolve(sizes, keep=1e-9).tolist() == [1, 1, 1, 1]


def test_an_empty_group_keeps_nothing():
    assert resolve(torch.tensor([0, 4]), keep=0.5).tolist() == [0, 2]


def test_count_is_the_same_for_all():
    assert resolve(torch.tensor([576, 10]), count=10).tolist() == [10, 10]
    assert resolve(torch.tensor([], dtype=torch.long), count=10).tolist() == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "keep is None and count is None"),
        ({"keep": 0.5, "count": 3}, "keep is 0.5 and count is 3"),
        ({"keep": 0.0}, "keep is 0.0"),
        ({"keep": 1.01}, "keep is 1.01"),
        ({"keep": float("nan")}, "keep is nan"),
        ({"count": 0}, "count is 0"),
        ({"count": 2.5}, "count is 2.5"),
        ({"count": True}, "count is True"),
        ({"keep": True}, "keep is True"),
        ({"count": float("inf")}, "count is inf"),
        ({"count": 4}, "count is 4, but a group has only 3"),
    ],
)
def test_resolve_refuses(asked, message):
    with pytest.raises(ValueError, match=message):
        resolve(torch.tensor([5, 3]), **asked)


def test_check():
    sizes = torch.tensor([5, 3])
    check(torch.tensor([5, 1]), sizes)
    with pytest.raises(ValueError, match=r"k has \(1,\) entries"):
        check(torch.tensor([5]), sizes)
    with pytest.raises(ValueError, match="k of group 1 is 4, expected between 1 and its 3"):
        check(torch.tensor([5, 4]), sizes)
    with pytest.raises(ValueError, match="k of group 0 is 0"):
        check(torch.tensor([0, 4]), sizes)
