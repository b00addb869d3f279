"""Radius graphs: equal to brute force over pairs; sums over edges equal to products with a matrix."""

import pytest
import torch

from crtc.graph import (
    Edges,
    edge_degree,
    edge_matvec,
    feature_neighbors,
    grid_neighbors,
    join,
    neighbor_edges,
    radius_edges,
)
from crtc.tokens import CONTEXT
from tests.making import make_tokens

OWNER = torch.tensor([0] * 7 + [CONTEXT] * 2 + [1] + [2] * 10 + [CONTEXT] + [0, 2])  # ragged, scattered


def points(num: int, channels: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, channels, generator=torch.Generator().manual_seed(seed))


def dense(edges: Edges, value: torch.Tensor) -> torch.Tensor:
    matrix = torch.zeros(edges.num, edges.num, dtype=value.dtype)
    matrix[edges.target, edges.source] = value
    return matrix


@pytest.mark.parametrize("radius", [0.5, 3.0, 1e30, torch.tensor([2.0, 1.0, 4.0])])
@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_equals_every_pair(radius: float | torch.Tensor, chunk: int) -> None:
    x = points(len(OWNER))
    x[OWNER < 0] = torch.nan  # nobody's tokens are not read
    edges = radius_edges(x, OWNER, radius, chunk=chunk)
    limit = torch.as_tensor(radius).expand(3)
    expected = [
        (i, j, float((x[i] - x[j]).square().sum()))
        for i in range(len(x))
        for j in range(len(x))
        if i != j and OWNER[i] == OWNER[j] >= 0 and float((x[i] - x[j]).norm()) <= float(limit[OWNER[i]])
    ]
    assert list(zip(edges.target.tolist(), edges.source.tolist(), strict=True)) == [pair[:2] for pair in expected]
    torch.testing.assert_close(edges.squared, torch.tensor([pair[2] for pair in expected]))


@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_what_is_on_the_radius_is_inside_and_copies_are_at_0(far: float) -> None:
    """Far from the origin too, where products alone would lose the distance."""
    place = torch.arange(6.0).repeat(2)[:, None] * torch.tensor([1.0, 0.0]) + torch.tensor([far, 7 * far])
    edges = radius_edges(place, torch.zeros(12, dtype=torch.long), 1.0, chunk=5)
    step = (torch.arange(12)[:, None] % 6 - torch.arange(12) % 6).abs()
    expected = (step <= 1) & ~torch.eye(12, dtype=torch.bool)
    assert torch.equal(dense(edges, torch.ones_like(edges.squared)) > 0, expected)
    assert torch.equal(dense(edges, edges.squared), torch.where(expected, step, 0).float())


def test_both_directions_are_the_same_to_the_bit() -> None:
    edges = radius_edges(points(200, 33), torch.arange(200) % 3, 8.0, chunk=17)
    distance = dense(edges, edges.squared)
    assert len(edges.source) > 1000 and torch.equal(distance, distance.T)
    assert torch.equal(edges.edge_index, torch.stack([edges.source, edges.target]))


def test_half_precision_is_read_as_single() -> None:
    x = points(30).bfloat16()
    half, single = (radius_edges(y, torch.zeros(30, dtype=torch.long), 2.0) for y in (x, x.float()))
    assert torch.equal(half.source, single.source) and torch.equal(half.squared, single.squared)


def test_neighbour_lists_become_symmetric() -> None:
    tokens = make_tokens([[(4, 5)], [(2, 2)]])
    lists = join(feature_neighbors(tokens.x, tokens.group, 3), grid_neighbors(tokens))
    edges = neighbor_edges(lists, tokens.x)
    directed = set(zip(*lists.to_edges()[0].tolist(), strict=True))
    expected = {(j, i) for i, j in directed} | directed
    assert list(zip(edges.target.tolist(), edges.source.tolist(), strict=True)) == sorted(expected)
    x = tokens.x.float()
    torch.testing.assert_close(edges.squared, (x[edges.source] - x[edges.target]).square().sum(1))


def test_sums_are_products_with_the_kernel_matrix() -> None:
    x = points(len(OWNER)).double()
    edges = radius_edges(x, OWNER, 3.0)
    kernel = (1 - edges.squared / 9).requires_grad_()
    weight = points(len(OWNER), 1, seed=1)[:, 0].double().requires_grad_()
    matrix = dense(edges, kernel) + torch.eye(len(x))
    torch.testing.assert_close(edge_degree(edges, kernel), matrix.sum(1))
    product, expected = edge_matvec(edges, kernel, weight), matrix @ weight
    torch.testing.assert_close(product, expected)
    found, right = (torch.autograd.grad(y.square().sum(), (kernel, weight)) for y in (product, expected))
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("num", [0, 1, 4])
def test_no_edges(num: int) -> None:
    x = points(num)
    for owner in (torch.arange(num), torch.full((num,), CONTEXT)):
        edges = radius_edges(x, owner, 1.0)
        assert edges.edge_index.shape == (2, 0)
        assert torch.equal(edge_degree(edges, edges.squared), torch.ones(num))
        assert torch.equal(edge_matvec(edges, edges.squared, x[:, 0]), x[:, 0])
    assert neighbor_edges(feature_neighbors(x, owner, 2), x).num == num


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_is_a_distance(radius: float) -> None:
    with pytest.raises(ValueError, match=f"radius is {radius}, expected a positive and finite distance"):
        radius_edges(points(4), torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, radius]))


def test_what_does_not_fit_is_refused() -> None:
    x, owner = points(4), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"radius is \(3,\), expected one or \(2,\)"):
        radius_edges(x, owner, torch.ones(3))
    with pytest.raises(ValueError, match=r"owner is \(3,\), expected \(4,\)"):
        radius_edges(x, owner[:3], 1.0)
    with pytest.raises(ValueError, match="chunk is 0"):
        radius_edges(x, owner, 1.0, chunk=0)
    for bad in (torch.nan, torch.inf, 1e30):
        with pytest.raises(ValueError, match="token 2 holds NaN, infinity or what is too large"):
            radius_edges(x.index_fill(0, torch.tensor(2), bad), owner, 1.0)
    edges = radius_edges(x, owner, 1e6)
    with pytest.raises(ValueError, match=r"kernel is \(3,\), expected \(4,\)"):
        edge_degree(edges, torch.ones(3))
    with pytest.raises(ValueError, match=r"kernel is \(1,\), expected \(4,\)"):
        edge_matvec(edges, torch.ones(1), torch.ones(4))
    with pytest.raises(ValueError, match=r"weight is \(3,\), expected \(4,\)"):
        edge_matvec(edges, torch.ones(4), torch.ones(3))
    with pytest.raises(ValueError, match="x has 3 tokens, the neighbours are of 4"):
        neighbor_edges(feature_neighbors(x, owner, 1), x[:3])


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ([0, 1], [1], r"target is \(1,\), expected \(2,\)"),
        ([0, 3], [1, 0], "source goes from 0 to 3, expected 0 to 2"),
        ([0, 1], [-1, 0], "target goes from -1 to 0, expected 0 to 2"),
        ([1, 1], [0, 1], "1 edges join a token with itself"),
        ([0, 1], [1, 0], "edge 1 is not in order"),
        ([1, 1], [0, 0], "edge 1 is not in order"),
    ],
)
def test_edges_check_themselves(source: list[int], target: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edges(torch.tensor(source), torch.tensor(target), torch.ones(len(source)), 3)
