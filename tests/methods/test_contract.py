"""What every method of the catalogue must fulfil; a new method is here as soon as it is exported."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crtc.methods import Method, catalogue
from crtc.tokens import Plan, Tokens, apply
from tests.making import make_tokens, shuffle

every_method = pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in catalogue().items()])
images = st.tuples(st.integers(1, 5), st.integers(1, 5))
batches = st.lists(st.lists(images, min_size=1, max_size=2), min_size=1, max_size=3)
CHANNELS = 16
few = settings(max_examples=8, deadline=None, derandomize=True, database=None)
RAGGED = [[(4, 6)], [(3, 3), (5, 2)], [(1, 1)]]


def make(kind: type[Method]) -> Method:
    """The method with its default settings; a learned one untrained, always with the same weights."""
    torch.manual_seed(0)
    return kind.for_width(CHANNELS).eval()


def some(tokens: Tokens, share: float) -> Tensor:
    """Counts that differ between groups, between 1 and all."""
    spread = torch.linspace(share, 1 - share, tokens.num_groups)
    return (tokens.group_sizes * spread).long().clamp(min=1).minimum(tokens.group_sizes)


def owners(plan: Plan) -> Tensor:
    """For every token the kept token that it belongs to, -1 for none."""
    return torch.where(plan.slot >= 0, plan.kept[plan.slot], -1)


def same(one: Plan, other: Plan) -> bool:
    """Whether the choice is the same and the shares agree."""
    return torch.equal(owners(one), owners(other)) and torch.allclose(one.weight, other.weight)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Tokens, Tensor]:
    """A ragged batch, some of its tokens copies of others or all alike, in either float type, and counts."""
    tokens = make_tokens(draw(batches), seed=draw(st.integers(0, 9)), equal=draw(st.sampled_from([False, False, True])))
    copies = draw(st.sampled_from([0.0, 0.5, 1.0]))
    tokens = duplicated(tokens, copies, seed=draw(st.integers(0, 9)))
    sizes = tokens.group_sizes.tolist()
    k = [draw(st.one_of(st.just(1), st.just(size), st.integers(1, size))) for size in sizes]
    return tokens.to(draw(st.sampled_from([torch.float32, torch.bfloat16]))), torch.tensor(k)


def duplicated(tokens: Tokens, share: float, seed: int) -> Tokens:
    """The tokens with that share of the candidates made copies of any of their group, signals and all."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.arange(len(tokens))
    for group in range(tokens.num_groups):
        inside = (tokens.group == group).nonzero()[:, 0]
        copies = torch.rand(len(inside), generator=generator) < share
        source[inside[copies]] = inside[torch.randint(len(inside), (int(copies.sum()),), generator=generator)]
    x, signals = tokens.x[source], tokens.signals.select(source)
    return Tokens(x, tokens.kind, tokens.sequence, tokens.group, tokens.grid, signals)


@every_method
@settings(few, max_examples=30)
@given(request=requests())
def test_plans_are_whole_whatever_the_tokens(kind: type[Method], request: tuple[Tokens, Tensor]) -> None:
    """Exactly k, the mass of all, groups apart, nothing of the context, and groups of which all stay as they are."""
    tokens, k = request
    plan = make(kind)(tokens, k)
    assert torch.equal(plan.num_kept, k)
    assert bool((plan.kept.diff() > 0).all())
    mass = torch.zeros(tokens.num_groups).index_add(0, tokens.group[plan.kept], plan.size)
    assert torch.equal(mass, tokens.group_sizes.float())
    assert bool((plan.size >= 1).all())
    assert bool((plan.slot[~tokens.candidates] == -1).all())
    assert bool((plan.weight[~tokens.candidates] == 0).all())
    whole = tokens.candidates & (k == tokens.group_sizes)[tokens.group]
    assert torch.equal(owners(plan)[whole], whole.nonzero()[:, 0])
    result = apply(plan, tokens.x)
    assert result.dtype == tokens.x.dtype
    assert bool(torch.isfinite(result).all())
    assert torch.equal(result[whole[plan.kept]], tokens.x[whole])


@every_method
@pytest.mark.parametrize("extreme", ["one", "all but one", "all of the first"])
@pytest.mark.parametrize("equal", [False, True])
def test_extreme_counts(kind: type[Method], extreme: str, equal: bool) -> None:
    tokens = make_tokens(RAGGED, equal=equal)
    sizes = tokens.group_sizes
    k = {"one": torch.ones_like(sizes), "all but one": (sizes - 1).clamp(min=1)}.get(extreme, sizes.clamp(max=sizes[0]))
    if extreme == "all of the first":
        k = torch.where(torch.arange(len(sizes)) == 0, sizes, 1)
    plan = make(kind)(tokens, k)
    assert torch.equal(plan.num_kept, k)
    whole = (tokens.group == torch.arange(len(sizes))[k == sizes, None]).any(0)
    assert torch.equal(owners(plan)[whole], torch.arange(len(tokens))[whole])
    assert torch.equal(plan.weight[whole], torch.ones(int(whole.sum())))


@every_method
def test_one_token(kind: type[Method]) -> None:
    tokens = make_tokens([[(1, 1)]])
    plan = make(kind)(tokens, torch.tensor([1]))
    assert plan.kept.tolist() == [0]
    assert torch.equal(apply(plan, tokens.x), tokens.x[:1])


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeping_all_changes_nothing(kind: type[Method], dtype: torch.dtype) -> None:
    tokens = make_tokens(RAGGED).to(dtype)
    plan = make(kind)(tokens, tokens.group_sizes)
    assert torch.equal(plan.kept, tokens.candidates.nonzero()[:, 0])
    assert torch.equal(apply(plan, tokens.x), tokens.x[tokens.candidates])


@every_method
@few
@given(grids=batches, share=st.floats(0, 1))
def test_together_equals_alone(kind: type[Method], grids: list[list[tuple[int, int]]], share: float) -> None:
    tokens = make_tokens(grids)
    k = some(tokens, share)
    method = make(kind)
    together = method(tokens, k)
    for number in range(len(grids)):
        inside = tokens.sequence == number
        members = tokens.group[inside & tokens.candidates]
        alone = method(tokens.select(torch.tensor([number])), k[int(members.min()) : int(members.max()) + 1])
        offset = int(inside.nonzero()[0, 0])
        expected = owners(together)[inside]
        assert torch.equal(owners(alone), torch.where(expected >= 0, expected - offset, -1))
        assert torch.allclose(alone.weight, together.weight[inside])


@every_method
def test_same_seed_same_plan(kind: type[Method]) -> None:
    tokens = make_tokens(RAGGED)
    k = some(tokens, 0.3)
    first, method = make(kind)(tokens, k), make(kind)
    for plan in (method(tokens, k), method(tokens, k)):
        assert torch.equal(first.slot, plan.slot)
        assert torch.equal(first.weight, plan.weight)


@every_method
def test_a_planner_plans_as_the_method_does(kind: type[Method]) -> None:
    tokens, method = make_tokens(RAGGED), make(kind)
    planner = method.planner(tokens)
    for k in (some(tokens, 0.6), some(tokens, 0.3), tokens.group_sizes):
        one, other = planner(k), method(tokens, k)
        assert torch.equal(one.kept, other.kept) and torch.equal(one.slot, other.slot)
        assert torch.equal(one.weight, other.weight) and torch.equal(one.size, other.size)
    with pytest.raises(ValueError, match="expected"):
        planner(tokens.group_sizes + 1)


@every_method
@pytest.mark.parametrize("seed", [0, 1])
def test_permuting_tokens_permutes_the_plan(kind: type[Method], seed: int) -> None:
    method = make(kind)
    if method.uses_order:
        pytest.skip("declares that it uses the order")
    tokens = make_tokens(RAGGED)
    k = some(tokens, 0.3)
    shuffled, old = shuffle(tokens, seed)
    plan, moved = method(tokens, k), method(shuffled, k)
    owner = owners(moved)
    back = torch.empty_like(owner)
    back[old] = torch.where(owner >= 0, old[owner], -1)
    assert torch.equal(back, owners(plan))
    weight = torch.empty_like(plan.weight)
    weight[old] = moved.weight
    assert torch.allclose(weight, plan.weight)


@every_method
def test_text_matters_only_where_declared(kind: type[Method]) -> None:
    method = make(kind)
    if method.question_aware:
        pytest.skip("declares that it reads the question")
    tokens = make_tokens(RAGGED)
    k = some(tokens, 0.3)
    x = torch.where(tokens.candidates[:, None], tokens.x, -tokens.x)
    other = Tokens(x, tokens.kind, tokens.sequence, tokens.group, tokens.grid, tokens.signals)
    assert same(method(tokens, k), method(other, k))


@every_method
def test_half_precision_agrees(kind: type[Method]) -> None:
    tokens = make_tokens(RAGGED)
    k = some(tokens, 0.3)
    method = make(kind)
    assert same(method(tokens, k), method(tokens.to(torch.bfloat16), k))


@every_method
def test_state_round_trip(kind: type[Method]) -> None:
    tokens = make_tokens(RAGGED)
    k = some(tokens, 0.3)
    method, other = make(kind), kind.for_width(CHANNELS).eval()
    other.load_state_dict(method.state_dict())
    assert same(method(tokens, k), other(tokens, k))


@every_method
def test_declares_itself(kind: type[Method]) -> None:
    assert kind.source
    assert kind.family
    assert kind.licence and kind.place
    assert kind.__doc__
    assert repr(make(kind)).startswith(kind.__name__ + "(")


@every_method
def test_refuses_tokens_that_lack_a_need(kind: type[Method]) -> None:
    method = make(kind)
    whole = make_tokens([[(2, 2)]], num_text=0)
    bare = Tokens(whole.x, whole.kind, whole.sequence, whole.group, torch.full_like(whole.grid, -1))
    if not method.needs:
        assert len(method(bare, torch.tensor([2])).kept) == 2
        return
    with pytest.raises(ValueError, match=sorted(method.needs)[0]):
        method(bare, torch.tensor([2]))


@every_method
@pytest.mark.parametrize("k", [0, 5])
def test_refuses_impossible_counts(kind: type[Method], k: int) -> None:
    with pytest.raises(ValueError, match=f"k of group 0 is {k}"):
        make(kind)(make_tokens([[(2, 2)]]), torch.tensor([k]))
