"""What a method sees and what it answers: `Tokens`, `Plan`, and `apply`, which carries a plan out.

Letters of the house: N tokens, C candidates (tokens that may be dropped), G groups, K kept, D channels, E edges.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TEXT, IMAGE, VIDEO = 0, 1, 2
CONTEXT = -1
"""Group of tokens that are never dropped, such as the question."""
DROPPED = -1

LayerSignalName = Literal["layer_queries", "layer_keys", "plain_queries", "plain_keys", "normed_states", "embeddings"]
TowerSignalName = Literal["cls_attention", "received_attention", "shallow_attention", "keys", "features"]
LookSignalName = Literal["question_attention"]
SignalName = TowerSignalName | LayerSignalName | LookSignalName
LAYER_SIGNALS: tuple[LayerSignalName, ...] = get_args(LayerSignalName)
TOWER_SIGNALS: tuple[TowerSignalName, ...] = get_args(TowerSignalName)
LOOK_SIGNALS: tuple[LookSignalName, ...] = get_args(LookSignalName)
SIGNALS: tuple[SignalName, ...] = (*TOWER_SIGNALS, *LAYER_SIGNALS, *LOOK_SIGNALS)


@dataclass(frozen=True)
class Signals:
    """What a host could capture, one row per token; of tower and look, rows of context tokens are zero.

    Args:
        cls_attention: softmax attention of the vision tower's [CLS] query, mean over heads.
        received_attention: attention a token receives from all queries of its image, mean over heads and queries.
        shallow_attention: attention received in the layer that is three eighths up the tower, as layer 9 of 24.
        keys: keys of the layer that feeds the projector, mean over heads.
        features: encoder states before the projector.
        layer_queries: of a layer of the language model, of text too, rotated, and scaled as its logits are.
        layer_keys: of the same layer, rotated; H / J queries share a head of keys.
        plain_queries: the queries before rotation.
        plain_keys: the keys before rotation.
        normed_states: what the layer in front gives, through the last norm of the language model.
        embeddings: what the first layer of the language model reads.
        question_attention: squared attention that the words behind the visual tokens pay to each token in a first pass
            over a coarse plan, summed over layers and heads, a slot's share spread evenly over its members.
    """

    cls_attention: Float[Tensor, " N"] | None = None
    received_attention: Float[Tensor, " N"] | None = None
    shallow_attention: Float[Tensor, " N"] | None = None
    keys: Float[Tensor, "N Dk"] | None = None
    features: Float[Tensor, "N De"] | None = None
    layer_queries: Float[Tensor, "N H d"] | None = None
    layer_keys: Float[Tensor, "N J d"] | None = None
    plain_queries: Float[Tensor, "N H d"] | None = None
    plain_keys: Float[Tensor, "N J d"] | None = None
    normed_states: Float[Tensor, "N D"] | None = None
    embeddings: Float[Tensor, "N D"] | None = None
    question_attention: Float[Tensor, " N"] | None = None

    @property
    def present(self) -> frozenset[SignalName]:
        """Names of the signals that are there."""
        return frozenset(name for name in SIGNALS if getattr(self, name) is not None)

    def select(self, index: Int[Tensor, " M"]) -> "Signals":
        """The signals of some tokens."""
        return Signals(**{name: getattr(self, name)[index] for name in self.present})

    def to(self, *args: torch.device | torch.dtype | str) -> "Signals":
        """The signals on another device or in another float type, as `Tensor.to`."""
        return Signals(**{name: getattr(self, name).to(*args) for name in self.present})


@dataclass(frozen=True)
class Tokens:
    """All tokens of a batch of ragged sequences as one flat list, text and visual, without padding.

    Args:
        x: features in the language model's embedding space.
        kind: `TEXT`, `IMAGE` or `VIDEO`.
        sequence: the prompt that a token belongs to, ascending.
        group: the group whose tokens share one count (an image or a clip), numbered 0, 1, ... in order of
            appearance; `CONTEXT` for tokens that are never dropped. A group lies within one sequence.
        grid: time, row, column of a visual token; -1 where there is none.
        signals: what the host captured.

    Raises:
        ValueError: if shapes disagree, features are not finite, or groups are not as described.
    """

    x: Float[Tensor, "N D"]
    kind: Int[Tensor, " N"]
    sequence: Int[Tensor, " N"]
    group: Int[Tensor, " N"]
    grid: Int[Tensor, "N 3"]
    signals: Signals = field(default_factory=Signals)

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or not self.x.is_floating_point():
            raise ValueError(f"x is {tuple(self.x.shape)} of {self.x.dtype}, expected floating [N, D]")
        num = len(self.x)
        for name, shape in (("kind", (num,)), ("sequence", (num,)), ("group", (num,)), ("grid", (num, 3))):
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} is {tuple(getattr(self, name).shape)}, expected {shape}")
        for name in self.signals.present:
            signal = getattr(self.signals, name)
            if len(signal) != num:
                raise ValueError(f"signal {name} has {len(signal)} rows, expected {num}")
            if not bool(torch.isfinite(signal).all()):
                raise ValueError(f"signal {name} holds NaN or infinity, expected finite values")
        if not bool(torch.isfinite(self.x).all()):
            row = int((~torch.isfinite(self.x)).any(1).nonzero()[0, 0])
            raise ValueError(f"x holds NaN or infinity, first in token {row}, expected finite features")
        if num and bool((self.sequence.diff() < 0).any()):
            token = int((self.sequence.diff() < 0).nonzero()[0, 0]) + 1
            raise ValueError(
                f"sequence goes down to {int(self.sequence[token])} at token {token}, expected ascending numbers"
            )
        members = self.group[self.group >= 0]
        if bool((self.group < CONTEXT).any()):
            raise ValueError(f"group holds {int(self.group.min())}, expected {CONTEXT} or larger")
        if len(members):
            steps = members.diff()
            if int(members[0]) != 0 or bool(((steps < 0) | (steps > 1)).any()):
                order = [int(members[0]), *(int(number) for number in members[1:][steps != 0])]
                raise ValueError(f"groups come as {order[:8]}, expected 0, 1, ... in order of appearance without gaps")
            first = torch.full((self.num_groups,), num, device=self.x.device).scatter_reduce_(
                0, members, self.sequence[self.group >= 0], "amin"
            )
            spans = first[members] != self.sequence[self.group >= 0]
            if bool(spans.any()):
                raise ValueError(f"group {int(members[spans][0])} spans two sequences, expected each within one")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def num_groups(self) -> int:
        """Groups in the batch."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @property
    def candidates(self) -> Bool[Tensor, " N"]:
        """Which tokens may be dropped."""
        return self.group >= 0

    @property
    def group_sizes(self) -> Int[Tensor, " G"]:
        """Candidates of every group."""
        return torch.bincount(self.group[self.candidates], minlength=self.num_groups)

    def to(self, *args: torch.device | torch.dtype | str) -> "Tokens":
        """The tokens on another device or with features in another float type, as `Tensor.to`."""
        places = [arg for arg in args if not isinstance(arg, torch.dtype)]
        whole = {name: getattr(self, name).to(*places) for name in ("kind", "sequence", "group", "grid") if places}
        x = self.x.to(*args)  # type: ignore[call-overload]
        return replace(self, x=x, signals=self.signals.to(*args), **whole)

    def where(self, stays: Bool[Tensor, " N"]) -> "Tokens":
        """The tokens without some of their context.

        Raises:
            ValueError: if a candidate is to go; dropping those is what plans are for.
        """
        if bool((self.candidates & ~stays).any()):
            raise ValueError(
                f"{int((self.candidates & ~stays).sum())} candidates are to go, expected context tokens only"
            )
        index = stays.nonzero()[:, 0]
        return Tokens(
            self.x[index],
            self.kind[index],
            self.sequence[index],
            self.group[index],
            self.grid[index],
            self.signals.select(index),
        )

    def select(self, sequences: Int[Tensor, " S"]) -> "Tokens":
        """Some sequences of the batch, in the order given, renumbered."""
        parts = [(self.sequence == s).nonzero()[:, 0] for s in sequences.tolist()]
        index = torch.cat(parts)
        owner = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
        group = self.group[index]
        inside = group >= 0
        fresh = torch.ones_like(group[inside], dtype=torch.bool)
        fresh[1:] = (group[inside].diff() != 0) | (owner[inside].diff() != 0)
        renumbered = group.clone()
        renumbered[inside] = fresh.cumsum(0) - 1
        return Tokens(self.x[index], self.kind[index], owner, renumbered, self.grid[index], self.signals.select(index))


@dataclass(frozen=True)
class Groups:
    """The candidates of every group side by side, padded to the longest: the form that vectorised methods work on.

    Args:
        index: token numbers, 0 where padded.
        valid: False where padded.
    """

    index: Int[Tensor, "G M"]
    valid: Bool[Tensor, "G M"]

    @classmethod
    def of(cls, tokens: Tokens) -> "Groups":
        """The groups of `tokens`."""
        sizes = tokens.group_sizes
        flat = tokens.candidates.nonzero()[:, 0]
        longest = int(sizes.max()) if len(sizes) else 0
        valid = torch.arange(longest, device=flat.device) < sizes[:, None]
        index = torch.zeros(valid.shape, dtype=torch.long, device=flat.device)
        index[valid] = flat
        return cls(index, valid)

    def gather(self, rows: Tensor) -> Tensor:
        """`rows` [N, ...] as [G, M, ...], zero where padded."""
        # several times as fast as rows[self.index] on a CPU
        picked = rows.index_select(0, self.index.flatten()).view(*self.index.shape, *rows.shape[1:])
        return picked.mul_(self.valid.view(*self.valid.shape, *[1] * (rows.ndim - 1)).to(rows.dtype))

    def places(self, num: int) -> Int[Tensor, " N"]:
        """Of `num` tokens each one's column here, 0 for those that are in no group."""
        found = torch.zeros(num, dtype=torch.long, device=self.index.device)
        found[self.index[self.valid]] = self.valid.nonzero()[:, 1]
        return found


@dataclass(frozen=True)
class Plan:
    """Which tokens stay, what becomes of the others. A value: save it, compare it, draw it, apply it.

    Row k of the result is `sum_i weight[i] * x[i]` over the tokens with `slot[i] == k`: pruning is weight 1 on the kept
    token and 0 on those whose mass it takes over, a mean has weights 1 / n. The mass `size[k]` counts the tokens that a
    slot stands for, whether they gave their content or only their mass.

    Args:
        kept: numbers of the kept tokens, ascending; a merged token stands where its kept token stood.
        slot: for every candidate the slot that it joins, `DROPPED` if it joins none; `DROPPED` for context.
        weight: share of every token in the content of its slot.
        size: how many tokens each slot stands for.
        group: the group of every token, as in `Tokens`.

    Raises:
        ValueError: if kept is not ascending, a kept token is not in its own slot, a slot is out of range, a context
            token is in a slot, or a merge crosses groups.
    """

    kept: Int[Tensor, " K"]
    slot: Int[Tensor, " N"]
    weight: Float[Tensor, " N"]
    size: Float[Tensor, " K"]
    group: Int[Tensor, " N"]

    def __post_init__(self) -> None:
        if len(self.kept) and (int(self.kept.min()) < 0 or int(self.kept.max()) >= len(self.slot)):
            raise ValueError(
                f"kept goes from {int(self.kept.min())} to {int(self.kept.max())}, expected 0 to {len(self.slot) - 1}"
            )
        if bool((self.kept.diff() <= 0).any()):
            place = int((self.kept.diff() <= 0).nonzero()[0, 0])
            raise ValueError(f"kept has {int(self.kept[place + 1])} behind {int(self.kept[place])}, expected ascending")
        if self.slot.shape != self.weight.shape or self.slot.shape != self.group.shape:
            raise ValueError(
                f"slot, weight and group have {len(self.slot)}, {len(self.weight)}, {len(self.group)} rows"
            )
        if self.kept.shape != self.size.shape:
            raise ValueError(f"size has {len(self.size)} rows, expected {len(self.kept)}")
        order = torch.arange(len(self.kept), device=self.kept.device)
        if not torch.equal(self.slot[self.kept], order):
            wrong = int((self.slot[self.kept] != order).nonzero()[0, 0])
            token = int(self.kept[wrong])
            raise ValueError(f"kept token {token} is in slot {int(self.slot[token])}, expected its own, {wrong}")
        if len(self.slot) and (int(self.slot.min()) < DROPPED or int(self.slot.max()) >= len(self.kept)):
            raise ValueError(
                f"slot goes from {int(self.slot.min())} to {int(self.slot.max())}, expected {DROPPED} to "
                f"{len(self.kept) - 1}"
            )
        joined = self.slot >= 0
        if bool((self.group[joined] < 0).any()):
            token = int((joined & (self.group < 0)).nonzero()[0, 0])
            raise ValueError(f"context token {token} is in slot {int(self.slot[token])}, expected candidates only")
        other = self.group[joined] != self.group[self.kept][self.slot[joined]]
        if bool(other.any()):
            token = int(joined.nonzero()[:, 0][other][0])
            raise ValueError(f"token {token} of group {int(self.group[token])} joins a slot of another group")

    @property
    def num_kept(self) -> Int[Tensor, " G"]:
        """Kept tokens of every group."""
        groups = int(self.group.max()) + 1 if len(self.group) else 0
        return torch.bincount(self.group[self.kept], minlength=groups)

    @property
    def merges(self) -> bool:
        """Whether any slot takes content from more than its kept token."""
        alone = torch.zeros_like(self.weight)
        alone[self.kept] = 1
        return not torch.equal(alone, self.weight)

    def to(self, device: torch.device | str) -> "Plan":
        """The same plan on another device."""
        return Plan(*(getattr(self, f.name).to(device) for f in fields(self)))


def keep_all(tokens: Tokens) -> Plan:
    """The plan that changes nothing."""
    kept = tokens.candidates.nonzero()[:, 0]
    slot = torch.full_like(tokens.group, DROPPED)
    slot[kept] = torch.arange(len(kept), device=kept.device)
    weight = tokens.candidates.to(torch.float32)
    return Plan(kept, slot, weight, torch.ones(len(kept), device=kept.device), tokens.group)


def compose(first: Plan, second: Plan, alive: Int[Tensor, " M"]) -> Plan:
    """One plan that does what two do after each other.

    Args:
        first: of all tokens.
        second: of those that the first one left, or that a method saw of them.
        alive: number among all tokens of every token of the second plan, ascending.

    Raises:
        ValueError: if the second plan is of another number of tokens.
    """
    if len(alive) != len(second.slot):
        raise ValueError(f"alive has {len(alive)} tokens, the second plan {len(second.slot)}")
    local = torch.full_like(first.slot, DROPPED)
    local[alive] = torch.arange(len(alive), device=alive.device)
    there = local[first.kept]
    joins = first.slot >= 0
    slot, weight = torch.full_like(first.slot, DROPPED), first.weight.clone()
    slot[joins] = second.slot[there][first.slot[joins]]
    weight[joins] = weight[joins] * second.weight[there].to(weight.dtype)[first.slot[joins]]
    target = second.slot[there]
    size = torch.zeros(len(second.kept), dtype=first.size.dtype, device=first.size.device)
    size = size.index_add(0, target[target >= 0], first.size[target >= 0])
    return Plan(alive[second.kept], slot, weight, size, first.group)


def apply(plan: Plan, x: Float[Tensor, "N *rest"]) -> Float[Tensor, "K *rest"]:
    """Carry a plan out on any tensor that has the same tokens; differentiable in `x` and the weights.

    Raises:
        ValueError: if `x` has another number of tokens than the plan.
    """
    if len(x) != len(plan.slot):
        raise ValueError(f"x has {len(x)} tokens, the plan {len(plan.slot)}")
    if not plan.weight.requires_grad and not plan.merges:
        return x[plan.kept]
    joined = (plan.slot >= 0).nonzero()[:, 0]
    accurate = torch.promote_types(x.dtype, torch.float32)
    share = plan.weight[joined].to(accurate).view(-1, *[1] * (x.ndim - 1))
    total = torch.zeros(len(plan.kept), *x.shape[1:], dtype=accurate, device=x.device)
    return total.index_add(0, plan.slot[joined], share * x[joined].to(accurate)).to(x.dtype)
