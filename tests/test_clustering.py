import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering

from crtc.clustering import agglomerate


def ward(x: torch.Tensor, k: list[int], weight: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    both = weight[:, :, None] * weight[:, None] / (weight[:, :, None] + weight[:, None])
    return agglomerate(both * torch.cdist(x, x).square(), valid, torch.tensor(k), "ward", weight)


def partition(label: torch.Tensor) -> np.ndarray:
    return (label[:, None] == label).numpy()


@pytest.mark.parametrize("k", [1, 4, 13, 40])
def test_ward_equals_scikit_learn(k: int) -> None:
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
