import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering

from crtc.ward import ward_tree


def ward(x: torch.Tensor, k: list[int], weight: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return ward_tree(x, weight, valid).cut(torch.tensor(k))


def partition(label: torch.Tensor) -> np.ndarray:
    return (label[:, None] == label).numpy()


@pytest.mark.parametrize("k", [1, 4, 13, 39, 40])
def test_equals_scikit_learn(k: int) -> None:
    x = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everything = torch.ones(2, 40, dtype=torch.bool)
    label = ward(x, [k, k], torch.ones(2, 40, dtype=torch.float64), everything)
    for one, found in zip(x, label, strict=True):
        expected = AgglomerativeClustering(k, linkage="ward").fit_predict(one.numpy())
        np.testing.assert_array_equal(partition(found), expected[:, None] == expected)


def test_weight_is_as_many_copies() -> None:
    x = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.tensor([[1, 3, 2, 1, 1, 4, 1, 2, 1, 1, 5, 1]])
    copies = torch.repeat_interleave(torch.arange(12), weight[0])
    whole, repeated = (torch.ones(1, n, dtype=torch.bool) for n in (12, len(copies)))
    once = ward(x, [5], weight.double(), whole)[0]
    often = ward(x[:, copies], [5], torch.ones(1, len(copies), dtype=torch.float64), repeated)[0]
    np.testing.assert_array_equal(partition(once[copies]), partition(often))


def test_padding_and_neighbours_in_the_batch_do_not_matter() -> None:
    x = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(2))
    valid = torch.arange(20) < torch.tensor([[20], [11]])
    weight = torch.rand(2, 20, generator=torch.Generator().manual_seed(3)) + 0.1
    both = ward(x, [6, 3], weight, valid)
    alone = ward(x[1:, :11], [3], weight[1:, :11], valid[1:, :11])
    assert torch.equal(both[1, :11], alone[0])
    assert len(both[0].unique()) == 6 and len(both[1, :11].unique()) == 3
    assert torch.equal(both[1, 11:], torch.arange(11, 20))


@pytest.mark.parametrize("wrong", ["x", "weight"])
def test_what_has_no_order_is_refused(wrong: str) -> None:
    given = {"x": torch.randn(2, 3, 4), "weight": torch.ones(2, 3)}
    valid = torch.tensor([[True, True, True], [True, True, False]])
    given[wrong][1, 2] = torch.nan  # padding is not read
    ward_tree(valid=valid, **given)
    given[wrong][0, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 5 tokens or their weights are not finite"):
        ward_tree(valid=valid, **given)


@given(st.integers(1, 24), st.integers(1, 6), st.integers(0, 2**16))
def test_every_cut_is_whole_and_inside_the_next(tokens: int, places: int, seed: int) -> None:
    """Few places for many tokens: copies and equal costs everywhere."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(places, 3, generator=random)[torch.randint(places, (1, tokens), generator=random)]
    tree = ward_tree(x, torch.rand(1, tokens, generator=random) + 0.01, torch.ones(1, tokens, dtype=torch.bool))
    finer = torch.arange(tokens)[None]
    for k in range(tokens, 0, -1):
        label = tree.cut(torch.tensor([k]))
        assert len(label.unique()) == k
        assert torch.equal(label.gather(1, label), label) and bool((label <= torch.arange(tokens)).all())
        assert torch.equal(label.gather(1, finer), label)
        finer = label


def test_copies_join_first() -> None:
    x = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(4)).repeat(1, 64, 1)
    label = ward(x, [9], torch.ones(1, 576), torch.ones(1, 576, dtype=torch.bool))
    assert torch.equal(label[0], torch.arange(9).repeat(64))
