"""Importance from the graph: what it is blind to, and what it equals."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crtc.graph import edge_degree, radius_edges
from crtc.methods import Reinforced, ReinforcedScorer
from crtc.reinforcement.degree import Kernel, balanced_degree, inverse_degree, squared_distances
from crtc.tokens import IMAGE, Plan, Tokens, apply
from tests.making import make_image, make_tokens

some = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def tokens_of(x: Tensor) -> Tokens:
    num = len(x)
    zero = torch.zeros(num, dtype=torch.long)
    return Tokens(x, torch.full((num,), IMAGE), zero, zero, torch.full((num, 3), -1))


def parts(plan: Plan, source: Tensor) -> set[frozenset[int]]:
    """Clusters as sets of the tokens that their members are copies of."""
    return {frozenset(source[plan.slot == slot].tolist()) for slot in range(len(plan.kept))}


@some
@given(seed=st.integers(0, 10_000), num=st.integers(4, 24), width=st.integers(2, 12), data=st.data())
def test_copies_do_not_count(seed: int, num: int, width: int, data: st.DataObject) -> None:
    """Repeated tokens change no cluster and no content of the balanced form, only sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, width, generator=generator, dtype=torch.float64).float()
    times = torch.tensor(data.draw(st.lists(st.integers(1, 6), min_size=num, max_size=num)))
    source = torch.repeat_interleave(torch.arange(num), times)
    source = source[torch.randperm(len(source), generator=generator)]
    method, k = Reinforced("balanced_degree"), data.draw(st.integers(1, num - 1))
    once, often = method(tokens_of(x), torch.tensor([k])), method(tokens_of(x[source]), torch.tensor([k]))
    assert parts(once, torch.arange(num)) == parts(often, source)
    assert float(often.size.sum()) == len(source)
    one, other = apply(once, x), apply(often, x[source])
    match = torch.cdist(one, other).argmin(1)
    torch.testing.assert_close(one, other[match], atol=2e-4, rtol=2e-4)


@some
@given(seed=st.integers(0, 10_000), times=st.integers(2, 9))
def test_copies_share_the_balanced_weight(seed: int, times: int) -> None:
    x = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(seed))
    source = torch.cat([torch.zeros(times - 1, dtype=torch.long), torch.arange(12)])
    one, other = (balanced_degree(part, torch.ones(part.shape[:2], dtype=torch.bool))[0] for part in (x, x[:, source]))
    shared = torch.zeros(12).index_add(0, source, other)
    torch.testing.assert_close(shared, one, atol=1e-4, rtol=1e-4)
    uniform = torch.zeros(12).index_add(0, source, torch.ones(len(source)))
    assert float(uniform.max()) == times  # what counts tokens has no such property


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


def test_inverse_degree_counts_what_is_alike() -> None:
    """Three copies of one thing and a far one: 1 / 3 each and 1."""
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    weight = inverse_degree(x, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(weight, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 1.0]]), atol=0.02, rtol=0)


def test_products_and_their_needs() -> None:
    method = Reinforced("cls_attention * inverse_degree")
    assert method.needs == {"cls_attention"} and not method.question_aware
    assert Reinforced("text_relevance*inverse_degree").question_aware
    image = make_image([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], cls_attention=[0.5, 0.25, 0.25])
    weight = method.weight(image)[2]
    alone = Reinforced().weight(image)[2]
    product = alone * torch.tensor([[1.0, 0.5, 0.5]])
    torch.testing.assert_close(weight, product / product.max())
    with pytest.raises(ValueError, match="factor 'degre', expected some of uniform"):
        Reinforced("cls_attention*degre")


def test_powers_and_what_is_looked_at_first() -> None:
    image = make_image(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)))
    root = Reinforced("inverse_degree^0.5").weight(image)[2]
    torch.testing.assert_close(root, Reinforced().weight(image)[2].sqrt())
    method = Reinforced("question_attention*inverse_degree^0.5", look=10)
    assert method.needs == {"question_attention"} and method.question_aware
    first, expected = method.first_plan(image), Reinforced("inverse_degree^0.5")(image, torch.tensor([10]))
    assert first is not None and torch.equal(first.slot, expected.slot)
    assert Reinforced().first_plan(image) is None
    with pytest.raises(ValueError, match="look is 0, expected at least 1"):
        Reinforced(look=0)
    with pytest.raises(ValueError, match=r"'inverse_degree\^high', expected a number"):
        Reinforced("inverse_degree^high")


def test_aggregations_of_one_importance() -> None:
    image = make_image(torch.randn(30, 8, generator=torch.Generator().manual_seed(2)))
    k = torch.tensor([6])
    ward, nearest, top = (Reinforced(aggregation=name)(image, k) for name in ("ward", "nearest", "top_k"))
    weight = Reinforced().weight(image)[2][0]
    best = weight.topk(6).indices.sort().values
    assert torch.equal(nearest.kept, best) and torch.equal(top.kept, best)
    assert torch.equal(nearest.slot, top.slot) and not torch.equal(ward.slot, top.slot)
    assert ward.merges and nearest.merges and not top.merges
    inside = nearest.slot == 0
    torch.testing.assert_close(nearest.weight[inside], weight[inside] / weight[inside].sum())
    with pytest.raises(ValueError, match="aggregation is 'best', expected one of ward, nearest, top_k"):
        Reinforced(aggregation="best")  # type: ignore[arg-type]


def test_importance_of_a_trained_method() -> None:
    tokens = make_tokens([[(5, 5)], [(3, 4)]])
    scorer = ReinforcedScorer(16, question=False, hidden=8, channels=2, metric=4).eval()
    groups, _, weight = Reinforced(scorer).weight(tokens)
    expected = groups.gather(scorer.score(tokens)).masked_fill(~groups.valid, -torch.inf).softmax(1)
    torch.testing.assert_close(weight / weight.sum(1, keepdim=True), expected)
    assert not Reinforced(scorer).question_aware and Reinforced(ReinforcedScorer(16)).question_aware


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


def test_along_edges_it_is_the_same_where_all_tokens_share_them() -> None:
    tokens = make_tokens([[(5, 6)], [(3, 4), (4, 4)]])
    k = torch.tensor([7, 3, 5])
    dense, sparse = Reinforced()(tokens, k), Reinforced(neighbors=40)(tokens, k)
    assert torch.equal(dense.slot, sparse.slot) and torch.equal(dense.kept, sparse.kept)
    torch.testing.assert_close(dense.weight, sparse.weight)
    few = Reinforced(neighbors=2)(tokens, k)
    assert torch.equal(few.num_kept, k) and float(few.size.sum()) == 58


def test_along_few_edges_it_loses_little_more() -> None:
    """The weighted sum of squares within clusters, which Ward keeps small, on clumps of directions."""
    generator = torch.Generator().manual_seed(7)
    clumps = torch.randn(20, 24, generator=generator)
    tokens = tokens_of(
        clumps[torch.randint(20, (300,), generator=generator)] + 0.4 * torch.randn(300, 24, generator=generator)
    )

    def loss(method: Reinforced, k: int) -> float:
        _, x, weight = method.weight(tokens)
        slot = method(tokens, torch.tensor([k])).slot
        total = torch.zeros(k).index_add(0, slot, weight[0])
        mean = torch.zeros(k, 24).index_add(0, slot, weight[0, :, None] * x[0]) / total[:, None]
        return float((weight[0] * (x[0] - mean[slot]).square().sum(-1)).sum())

    for k in (10, 20, 60):
        dense = loss(Reinforced(), k)
        assert loss(Reinforced(neighbors=16), k) < 1.03 * dense
        assert loss(Reinforced(neighbors=4), k) < 1.5 * dense


@pytest.mark.parametrize("wrong", [{"neighbors": 0}, {"neighbors": 8, "aggregation": "top_k"}])
def test_edges_are_for_ward(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"neighbors is {wrong['neighbors']} with"):
        Reinforced(**wrong)
