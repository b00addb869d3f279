"""The untrained composition: copies, products, aggregations, the first look, and the sparse form."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crtc.methods import Reinforced, ReinforcedScorer
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
    with pytest.raises(ValueError, match=r"'inverse_degree\^high', expected a finite number"):
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


@pytest.mark.parametrize("importance", ["inverse_degree^nan", "inverse_degree^inf", "inverse_degree^", 1])
def test_a_power_is_a_finite_number_and_an_importance_a_name(importance: Any) -> None:
    with pytest.raises(ValueError, match="importance"):
        Reinforced(importance)


def test_the_first_look_is_sparse_where_the_rest_is() -> None:
    tokens = make_tokens([[(6, 6)]])
    method = Reinforced("question_attention*inverse_degree", look=9, neighbors=3)
    first, expected = method.first_plan(tokens), Reinforced(neighbors=3)(tokens, torch.tensor([9]))
    assert first is not None and torch.equal(first.slot, expected.slot)
