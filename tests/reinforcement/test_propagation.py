"""Propagation: both forms agree, and with columns that sum to one it is networkx's personalised PageRank."""

import networkx
import pytest
import torch

from crtc.graph.neighbors import Neighbors, feature_neighbors
from crtc.reinforcement import Propagation, edge_softmax, propagate


@pytest.fixture
def neighbors():
    """A ragged kNN graph: 30 tokens in three groups, one of them a single token, and two without a group."""
    owner = torch.tensor([0] * 12 + [-1] + [1] * 15 + [2] + [-1])
    return feature_neighbors(torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), owner, 4)


def column_stochastic(neighbors):
    """Likeness (shifted to be positive) divided by what its source sends in all, [N, K] in float64."""
    raw = (neighbors.likeness.double() + 1.5) * neighbors.valid
    sent = torch.zeros(len(raw), dtype=torch.float64).index_add(0, neighbors.index.flatten(), raw.flatten())
    return raw / sent[neighbors.index].clamp(min=1e-300)


def test_one_step_by_hand():
    neighbors = Neighbors(
        torch.tensor([[1, 2], [0, 1], [2, 2]]),
        torch.ones(3, 2),
        torch.tensor([[True, True], [True, False], [False, False]]),
        torch.zeros(3, 2).long(),
        1,
    )
    weight = torch.tensor([[0.5, 0.25], [1.0, 0.0], [0.0, 0.0]])[..., None]
    seed = torch.tensor([[1.0], [2.0], [4.0]])
    assert propagate(seed, neighbors, weight, 0.5, 1)[:, 0].tolist() == [1.5, 1.5, 2.0]
    assert propagate(seed, neighbors, weight, 0.5, 2)[:, 0].tolist() == [1.125, 1.75, 2.0]
    assert propagate(seed, neighbors, weight, torch.tensor([1.0]), 1)[:, 0].tolist() == [2.0, 1.0, 0.0]


def test_no_steps_give_the_seed(neighbors):
    seed = torch.rand(30, 2)
    weight = torch.rand(30, 4, 2)
    assert torch.equal(propagate(seed, neighbors, weight, 0.7, 0), seed)
    index, _, _ = neighbors.to_edges()
    assert torch.equal(Propagation(0)(seed, index, weight[neighbors.valid], 0.7), seed)


def test_negative_steps_are_refused(neighbors):
    with pytest.raises(ValueError, match="steps is -1"):
        propagate(torch.zeros(30, 1), neighbors, torch.zeros(30, 4, 1), 0.5, -1)
    with pytest.raises(ValueError, match="steps is -1"):
        Propagation(-1)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_gather_equals_message_passing(neighbors, steps):
    generator = torch.Generator().manual_seed(1)
    seed = torch.rand(30, 3, generator=generator, dtype=torch.float64)
    weight = torch.rand(30, 4, 3, generator=generator, dtype=torch.float64) * neighbors.valid[..., None]
    share = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    index, _, _ = neighbors.to_edges()
    layer = Propagation(steps)(seed, index, weight[neighbors.valid], share)
    gathered = propagate(seed, neighbors, weight, share, steps)
    assert torch.allclose(gathered, layer, rtol=1e-14, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 0.85])
@pytest.mark.parametrize("degree", [2, 5])
def test_converges_to_networkx_pagerank(alpha, degree):
    generator = torch.Generator().manual_seed(2)
    neighbors = feature_neighbors(torch.randn(40, 8, generator=generator), torch.zeros(40).long(), degree)
    weight = column_stochastic(neighbors)
    seed = torch.rand(40, generator=generator, dtype=torch.float64)
    seed = seed / seed.sum()
    index, _, _ = neighbors.to_edges()
    sent = torch.zeros(40).index_add(0, index[0], torch.ones(index.shape[1]))
    silent = bool((sent == 0).any())
    assert silent == (degree == 2)
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(40))
    edges = zip(*index.tolist(), weight[neighbors.valid].tolist(), strict=True)
    graph.add_weighted_edges_from(edges)
    expected = networkx.pagerank(
        graph, alpha, personalization=dict(enumerate(seed.tolist())), weight="weight", tol=1e-16, max_iter=2000
    )
    found = propagate(seed[:, None], neighbors, weight[..., None], alpha, 400)[:, 0]
    if silent:  # networkx hands what tokens without outgoing edges hold back in the seed's proportions
        found = found / found.sum()
    reference = torch.tensor([expected[node] for node in range(40)], dtype=torch.float64)
    assert torch.allclose(found, reference, rtol=0, atol=1e-12)


def test_edge_softmax_rows(neighbors):
    logit = 50 * torch.randn(30, 4, 2, generator=torch.Generator().manual_seed(3))
    weight = edge_softmax(logit, neighbors)
    assert torch.allclose(weight.sum(1), neighbors.valid.any(1).float()[:, None].expand(30, 2))
    assert not weight[~neighbors.valid].any()
    assert not neighbors.valid[[12, 28, 29]].any()
    full = neighbors.valid.all(1)
    assert torch.allclose(weight[full], logit[full].softmax(1))


def test_edge_softmax_has_finite_gradients(neighbors):
    logit = torch.zeros(30, 4, 1, requires_grad=True)
    (edge_softmax(logit, neighbors) ** 2).sum().backward()
    assert torch.isfinite(logit.grad).all()
