"""Importance from the graph: what it is blind to, and what it equals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crtc.graph import edge_degree, radius_edges
from crtc.reinforcement.degree import Kernel, balanced_degree, inverse_degree, squared_distances
from crtc.tokens import IMAGE, Plan, Tokens

some = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def tokens_of(x: Tensor) -> Tokens:
    num = len(x)
    zero = torch.zeros(num, dtype=torch.long)
    return Tokens(x, torch.full((num,), IMAGE), zero, zero, torch.full((num, 3), -1))


def parts(plan: Plan, source: Tensor) -> set[frozenset[int]]:
    """Clusters as sets of the tokens that their members are copies of."""
    return {frozenset(source[plan.slot == slot].tolist()) for slot in range(len(plan.kept))}


@some
@given(seed=st.integers(0, 10_000), times=st.integers(2, 9))
def test_copies_share_the_balanced_weight(seed: int, times: int) -> None:
    x = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(seed))
    source = torch.cat([torch.zeros(times - 1, dtype=torch.long), torch.arange(12)])
    one, other = (balanced_degree(part, torch.ones(part.shape[:2], dtype=torch.bool))[0] for part in (x, x[:, source]))
    shared = torch.zeros(12).index_add(0, source, other)
    torch.testing.assert_close(shared, one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", [inverse_degree, balanced_degree])
def test_moving_turning_and_scaling_change_nothing(form: object) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 15, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    valid = torch.arange(15) < torch.tensor([[15], [9]])
    weight = form(x, valid)  # type: ignore[operator]
    assert bool((weight[valid] > 0).all()) and bool((weight[~valid] == 0).all())
    for other in (x + 7.0, x @ turn, 0.5 * x, 50 * x @ turn - 3):
        torch.testing.assert_close(form(other, valid), weight, atol=0, rtol=1e-4)  # type: ignore[operator]


def test_copies_add_to_the_inverse_degree_but_never_beyond_one() -> None:
    """What it has of the property: n copies weigh more than one, less than n times as much, and at most 1."""
    x = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(8))
    alone = inverse_degree(x, torch.ones(1, 12, dtype=torch.bool))[0, 0]
    for times in (2, 5, 20):
        source = torch.cat([torch.zeros(times - 1, dtype=torch.long), torch.arange(12)])
        weight = inverse_degree(x[:, source], torch.ones(1, len(source), dtype=torch.bool))[0]
        assert alone < weight[source == 0].sum() <= 1 + 1e-5
        assert weight[source == 0].sum() < times * alone


def test_inverse_degree_counts_what_is_alike() -> None:
    """Three copies of one thing and a far one: 1 / 3 each and 1."""
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    weight = inverse_degree(x, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(weight, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 1.0]]), atol=0.02, rtol=0)


def test_moments_of_all_pairs_are_those_of_the_tokens() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 9, 4, generator=generator, dtype=torch.float64) + 3
    weight = torch.rand(2, 9, generator=generator, dtype=torch.float64)
    weight[1, 6:] = 0
    squared, near = squared_distances(x), Kernel.of(x, weight)
    for group in range(2):
        odds = torch.outer(weight[group], weight[group]) / weight[group].sum() ** 2
        mean = (odds * squared[group]).sum()
        deviation = (odds * (squared[group] - mean).square()).sum().sqrt()
        torch.testing.assert_close(near.reach[group, 0, 0], mean - deviation / 2, atol=1e-5, rtol=0)
        torch.testing.assert_close(near.slope[group, 0, 0], 0.15 * deviation, atol=1e-5, rtol=0)


def test_rows_in_chunks_are_all_rows() -> None:
    x = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(5))
    valid = torch.arange(40) < torch.tensor([[40], [23]])
    torch.testing.assert_close(inverse_degree(x, valid, chunk=7), inverse_degree(x, valid))


@pytest.mark.parametrize(("slopes", "error"), [(2, 0.25), (5, 0.05), (50, 1e-5)])
def test_degree_within_a_radius(slopes: float, error: float) -> None:
    """What lies beyond a radius adds little, the less the wider it is; with all pairs it is the dense one."""
    x = torch.nn.functional.normalize(torch.randn(60, 6, generator=torch.Generator().manual_seed(6)), dim=-1)
    near = Kernel.of(x[None], torch.ones(1, 60))
    radius = float((near.reach + slopes * near.slope).sqrt())
    edges = radius_edges(x, torch.zeros(60, dtype=torch.long), radius)
    degree = edge_degree(edges, near(edges.squared[None, None])[0, 0])
    exact = 1 / inverse_degree(x[None], torch.ones(1, 60, dtype=torch.bool))[0]
    assert bool((degree <= exact + 1e-4).all())
    assert float(((exact - degree) / exact).max()) < error
