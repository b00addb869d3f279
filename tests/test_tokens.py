"""Tokens and plans: what they refuse, and what a plan does to a tensor."""

from dataclasses import replace

import pytest
import torch

from crtc.tokens import CONTEXT, DROPPED, TEXT, Groups, Plan, Signals, Tokens, apply, compose
from tests.making import make_tokens


@pytest.fixture
def tokens():
    """Two sequences: a 1 x 2 and a 1 x 1 image with one word; a 1 x 3 image with one word."""
    return make_tokens([[(1, 2), (1, 1)], [(1, 3)]], num_text=1, channels=2)


@pytest.fixture
def plan():
    """Five candidates and a word: 0 takes 1, 3 takes 4, 2 is dropped."""
    return Plan(
        kept=torch.tensor([0, 3]),
        slot=torch.tensor([0, 0, DROPPED, 1, 1, DROPPED]),
        weight=torch.tensor([0.25, 0.75, 0.0, 0.5, 0.5, 0.0]),
        size=torch.tensor([2.0, 2.0]),
        group=torch.tensor([0, 0, 0, 1, 1, CONTEXT]),
    )


def test_groups_sizes_and_candidates(tokens):
    assert tokens.group.tolist() == [0, 0, 1, CONTEXT, 2, 2, 2, CONTEXT]
    assert (len(tokens), tokens.num_groups, tokens.group_sizes.tolist()) == (8, 3, [2, 1, 3])
    assert tokens.candidates.tolist() == [True, True, True, False, True, True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(8)}, r"x is \(8,\)"),
        ({"x": torch.zeros(8, 2, dtype=torch.long)}, "x is .*int64"),
        ({"x": torch.zeros(7, 2)}, r"kind is \(8,\), expected \(7,\)"),
        ({"kind": torch.zeros(7, dtype=torch.long)}, r"kind is \(7,\), expected \(8,\)"),
        ({"sequence": torch.zeros(9, dtype=torch.long)}, r"sequence is \(9,\)"),
        ({"group": torch.zeros(8, 1, dtype=torch.long)}, r"group is \(8, 1\)"),
        ({"grid": torch.zeros(8, 2, dtype=torch.long)}, r"grid is \(8, 2\), expected \(8, 3\)"),
        ({"signals": Signals(keys=torch.zeros(7, 4))}, "signal keys has 7 rows, expected 8"),
        ({"signals": Signals(cls_attention=torch.full((8,), torch.inf))}, "signal cls_attention holds NaN"),
        ({"x": torch.zeros(8, 2).index_put((torch.tensor(5),), torch.tensor(torch.nan))}, "first in token 5"),
        (
            {"sequence": torch.tensor([0, 0, 0, 0, 1, 1, 1, 0])},
            "sequence goes down to 0 at token 7, expected ascending",
        ),
        ({"group": torch.tensor([0, 0, 1, -2, 2, 2, 2, -1])}, "group holds -2"),
        ({"group": torch.tensor([1, 1, 2, -1, 3, 3, 3, -1])}, "order of appearance"),
        ({"group": torch.tensor([0, 0, 1, -1, 3, 3, 3, -1])}, r"groups come as \[0, 1, 3\], .* without gaps"),
        ({"group": torch.tensor([0, 1, 0, -1, 2, 2, 2, -1])}, "order of appearance"),
        ({"group": torch.tensor([0, 0, 1, -1, 1, 1, 1, -1])}, "group 1 spans two sequences"),
    ],
)
def test_tokens_refuse(tokens, change, message):
    with pytest.raises(ValueError, match=message):
        replace(tokens, **change)


def test_groups_lie_side_by_side(tokens):
    groups = Groups.of(tokens)
    assert groups.places(len(tokens)).tolist() == [0, 1, 0, 0, 0, 1, 2, 0]
    assert groups.index.tolist() == [[0, 1, 0], [2, 0, 0], [4, 5, 6]]
    assert groups.valid.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert groups.gather(torch.arange(1.0, 9)).tolist() == [[1, 2, 0], [3, 0, 0], [5, 6, 7]]
    assert groups.gather(tokens.x).shape == (3, 3, 2)


def test_no_groups():
    text = Tokens(torch.zeros(2, 3), *torch.tensor([[TEXT] * 2, [0, 0], [CONTEXT] * 2]), torch.full((2, 3), -1))
    assert text.num_groups == 0 and text.group_sizes.tolist() == []
    assert Groups.of(text).valid.shape == (0, 0)


def test_select_takes_sequences_in_the_order_given(tokens):
    chosen = tokens.select(torch.tensor([1, 0]))
    old = [4, 5, 6, 7, 0, 1, 2, 3]
    assert chosen.sequence.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert chosen.group.tolist() == [0, 0, 0, CONTEXT, 1, 1, 2, CONTEXT]
    assert torch.equal(chosen.x, tokens.x[old]) and torch.equal(chosen.grid, tokens.grid[old])
    assert torch.equal(chosen.signals.keys, tokens.signals.keys[old])


def test_select_may_repeat_a_sequence(tokens):
    assert tokens.select(torch.tensor([1, 1])).group.tolist() == [0, 0, 0, CONTEXT, 1, 1, 1, CONTEXT]


def test_to_changes_features_only(tokens):
    double = tokens.to("cpu", torch.float64)
    assert double.x.dtype == double.signals.keys.dtype == torch.float64
    assert double.kind.dtype == double.group.dtype == torch.long


def test_to_moves_everything(tokens):
    bare = replace(tokens, signals=Signals())
    moved = {name: getattr(bare, name).to("cpu") for name in ("x", "kind", "sequence", "group", "grid")}
    again = bare.to("cpu")
    assert all(torch.equal(getattr(again, name), value) for name, value in moved.items())


def test_where_drops_context_only(tokens):
    assert tokens.where(tokens.candidates).group.tolist() == [0, 0, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="1 candidates are to go"):
        tokens.where(torch.arange(8) != 4)


def test_signals_present():
    signals = Signals(keys=torch.zeros(2, 1), features=torch.zeros(2, 1))
    assert signals.present == {"keys", "features"}
    assert signals.select(torch.tensor([1])).present == {"keys", "features"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": torch.tensor([0, 6])}, "kept goes from 0 to 6, expected 0 to 5"),
        ({"kept": torch.tensor([3, 0])}, "kept has 0 behind 3, expected ascending"),
        ({"kept": torch.tensor([0, 0])}, "kept has 0 behind 0, expected ascending"),
        ({"weight": torch.ones(5)}, "slot, weight and group have 6, 5, 6 rows"),
        ({"group": torch.zeros(5, dtype=torch.long)}, "slot, weight and group have 6, 6, 5 rows"),
        ({"size": torch.ones(3)}, "size has 3 rows, expected 2"),
        ({"kept": torch.tensor([1, 2])}, "kept token 2 is in slot -1, expected its own, 1"),
        ({"slot": torch.tensor([0, 0, 2, 1, 1, -1])}, "slot goes from -1 to 2, expected -1 to 1"),
        ({"slot": torch.tensor([0, 0, -2, 1, 1, -1])}, "slot goes from -2 to 1"),
        ({"slot": torch.tensor([0, 0, 1, 1, 1, -1])}, "token 2 of group 0 joins a slot of another group"),
        ({"slot": torch.tensor([0, 0, -1, 1, 1, 0])}, "context token 5 is in slot 0"),
    ],
)
def test_plan_refuses(plan, change, message):
    with pytest.raises(ValueError, match=message):
        replace(plan, **change)


def test_apply_weighs_what_joins(plan):
    x = torch.tensor([[4.0], [8.0], [100.0], [1.0], [3.0], [50.0]])
    assert apply(plan, x).tolist() == [[7.0], [2.0]]
    assert apply(plan, x[:, 0]).tolist() == [7.0, 2.0]
    assert plan.merges and plan.num_kept.tolist() == [1, 1]


def test_apply_refuses_other_tokens(plan):
    with pytest.raises(ValueError, match="x has 5 tokens, the plan 6"):
        apply(plan, torch.zeros(5, 1))


def test_apply_without_merging_copies_bits(plan):
    pruned = replace(plan, weight=torch.tensor([1.0, 0, 0, 1, 0, 0]))
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert not pruned.merges
    assert torch.equal(apply(pruned, x), x[[0, 3]])


def test_apply_keeps_the_type_and_adds_in_float32():
    zeros = torch.zeros(512, dtype=torch.long)
    plan = Plan(torch.tensor([0]), zeros, torch.ones(512), torch.tensor([512.0]), zeros)
    total = apply(plan, torch.ones(512, 1).bfloat16())
    assert total.dtype == torch.bfloat16 and total.item() == 512  # adding in bfloat16 would stop at 256


def test_apply_is_differentiable(plan):
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = plan.weight.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: apply(replace(plan, weight=weight), x), (x, weight))
    apply(replace(plan, weight=weight), x).sum().backward()
    assert x.grad[:, 0].tolist() == [0.25, 0.75, 0.0, 0.5, 0.5, 0.0]
    assert weight.grad[2] == 0 and torch.allclose(weight.grad[1], x[1].sum())


def test_two_plans_after_each_other_are_one() -> None:
    """Of a word and four tokens, 1 takes 2 with shares 3/4 and 1/4, 4 drops; then 3 takes 1 half and half."""
    group = torch.tensor([-1, 0, 0, 0, 0])
    first = Plan(
        torch.tensor([1, 3]),
        torch.tensor([-1, 0, 0, 1, -1]),
        torch.tensor([0, 0.75, 0.25, 1, 0]),
        torch.tensor([2.0, 1.0]),
        group,
    )
    alive = torch.tensor([0, 1, 3])
    second = Plan(
        torch.tensor([2]), torch.tensor([-1, 0, 0]), torch.tensor([0, 0.5, 0.5]), torch.tensor([2.0]), group[alive]
    )
    both = compose(first, second, alive)
    assert both.kept.tolist() == [3] and both.slot.tolist() == [-1, 0, 0, 0, -1] and both.size.tolist() == [3]
    x = torch.randn(5, 3)
    between = x[alive]
    between[1:] = apply(first, x)
    assert torch.allclose(apply(both, x), apply(second, between))
    with pytest.raises(ValueError, match="alive has 2 tokens, the second plan 3"):
        compose(first, second, alive[:2])
