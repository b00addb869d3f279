"""VisPruner: attended tokens, and of the rest those that are no duplicates (2412.01818v2)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.selection import top_k
from crtc.tokens import Groups, Plan, Tokens


class VisPruner(Method):
    """Half by [CLS] attention, half by removing duplicates from what is left.

    int(k * important) tokens of highest attention stay. The others, in the order of attention, are cut down step by
    step: every second one is compared with those between, and the `step` most similar ones go, until k tokens are left.
    As in the authors' code the survivors among the compared stand in front in the next step, the most similar first.
    Deviations: a step takes no more than are compared, where the code fails; dropped tokens give their mass to the kept
    token most like them.

    Args:
        important: share of k that is chosen by attention.
        step: tokens removed at once.
    """

    source = "VisPruner, arXiv 2412.01818v2"
    licence = "Apache-2.0"
    family = "saliency"
    needs = frozenset({"cls_attention", "features"})

    def __init__(self, *, important: float = 0.5, step: int = 8):
        super().__init__()
        if not 0 <= important < 1:
            raise ValueError(f"important is {important!r}, expected a share in [0, 1)")
        if step < 1:
            raise ValueError(f"step is {step!r}, expected at least 1")
        self.important = important
        self.step = step

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep `k[g]` attended and distinct tokens of every group."""
        groups = Groups.of(tokens)
        attention, features = tokens.signals.cls_attention, tokens.signals.features
        assert attention is not None and features is not None
        score = groups.gather(attention.float())
        important = (k * self.important).long()
        kept = top_k(score, groups.valid, important)
        unit = F.normalize(groups.gather(features).float(), dim=-1)
        rest = distinct(unit, score, groups.valid & ~kept, k - important, self.step)
        return give_mass(tokens, groups, kept | rest)


def distinct(
    unit: Float[Tensor, "G M D"],
    score: Float[Tensor, "G M"],
    among: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    step: int,
) -> Bool[Tensor, "G M"]:
    """Remove what resembles another, `step` at a time, until `k[g]` are left."""
    order = score.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    left = among.sum(1)
    start = unit.shape[1] * torch.arange(len(unit), device=unit.device)[:, None]
    pairs = (unit @ unit.transpose(1, 2)).flatten(0, 1)  # once for all steps
    while bool((left > k).any()):
        order = order[:, : int(left.max())]
        place = torch.arange(order.shape[1], device=order.device)
        real = place < left[:, None]
        first, second = real & (place % 2 == 0), real & (place % 2 == 1)
        even, odd = order[:, ::2], order[:, 1::2]
        # all columns with a wall before those that are not odd: faster than to gather the odd ones
        wall = torch.full_like(score, -torch.inf).scatter(1, odd, torch.where(second[:, 1::2], 0.0, -torch.inf))
        rows = pairs.index_select(0, (start + even).flatten()).view(*even.shape, -1)
        nearest = rows.add_(wall[:, None]).amax(-1)
        likeness = torch.full(order.shape, -torch.inf, dtype=nearest.dtype, device=order.device)
        likeness[:, ::2] = nearest
        compared = first.sum(1)
        gone = (left - k).clamp(min=0, max=step).minimum(compared)
        by_likeness = likeness.masked_fill(~first, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.zeros_like(order).scatter(1, by_likeness, place.expand_as(order))
        # the list of the next step: what stays of the compared, then the others; a finished group stays as it is
        fresh = torch.where(first, rank - gone[:, None], (compared - gone)[:, None] + place // 2)
        fresh = torch.where(first & (rank < gone[:, None]), order.shape[1] + place, fresh)
        fresh = torch.where(real, fresh, 2 * order.shape[1] + place)
        moved = order.gather(1, fresh.argsort(dim=1, stable=True))
        order = torch.where((left > k)[:, None], moved, order)
        left = left - gone
    place = torch.arange(order.shape[1], device=order.device)
    return torch.zeros_like(among).scatter(1, order, place < k[:, None])
