"""Token Merging: the most similar pairs of a bipartite matching become one (2210.09461)."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.batching import sums
from crtc.merging import make_plan, mean
from crtc.methods.method import Method
from crtc.tokens import DROPPED, Groups, Plan, Tokens

Metric = Literal["x", "keys"]


class ToMe(Method):
    """Merges even tokens into their most similar odd ones, round after round, until k are left.

    In a round of t tokens every even one points to the odd one with the largest cosine, and the min(t - k, t // 2)
    best pairs merge into size-weighted means, at the place of the odd token. The next round goes over the unmerged even
    tokens and then the odd ones, as in the authors' code.

    Deviations: once after the vision tower, as many rounds as it takes, instead of some pairs in every block; so the
    keys of merged tokens are means of keys and not computed anew. Attention in proportion to size is the host's part,
    with the sizes of the plan.

    Args:
        metric: what similarity is measured on, the tokens "x" or the vision tower's "keys".
    """

    source = "Token Merging, arXiv 2210.09461, section 3"
    licence = "CC-BY-NC-4.0"
    place = "in the encoder"
    family = "merging"
    uses_order = True

    def __init__(self, metric: Metric = "x"):
        super().__init__()
        if metric not in get_args(Metric):
            raise ValueError(f"metric is {metric!r}, expected one of {', '.join(get_args(Metric))}")
        self.metric: Metric = metric
        if metric == "keys":
            self.needs = frozenset({"keys"})

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Merge every group down to `k[g]` means."""
        groups = Groups.of(tokens)
        rows = tokens.signals.keys if self.metric == "keys" else tokens.x
        assert rows is not None
        owner = match_repeatedly(groups.gather(rows), groups.valid, k)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))


def match_repeatedly(
    metric: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]
) -> Int[Tensor, "G M"]:
    """Owner map after as many rounds of bipartite matching as leave `k[g]` tokens."""
    # Only directions count, so sums of the members do for their size-weighted means.
    total = metric.float()
    places = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
    owner, order, left = places, places, valid.sum(1)
    while bool((left > k).any()):
        longest = int(left.max())
        order, total = order[:, :longest], total[:, :longest]
        merges = torch.minimum(left - k, left // 2)
        joined = _match(total, left, merges)
        place = torch.arange(longest, device=order.device)
        owner = places.scatter(1, order, order.gather(1, joined)).gather(1, owner)
        gone = (joined != place) | (place >= left[:, None])
        left = left - merges
        rank = (place + place % 2 * longest + gone * 2 * longest).argsort(dim=1)
        order, target = order.gather(1, rank), torch.zeros_like(rank).scatter(1, rank, place.expand_as(rank))
        total = sums(total, target.gather(1, joined), longest)
    return owner.masked_fill(~valid, DROPPED)


def _match(total: Float[Tensor, "G L D"], left: Int[Tensor, " G"], merges: Int[Tensor, " G"]) -> Int[Tensor, "G L"]:
    """Where every listed token goes in one round: merged even ones to an odd one, all others to themselves."""
    unit = F.normalize(total, dim=-1)
    place = torch.arange(total.shape[1], device=total.device)
    there = place < left[:, None]
    likeness = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    if not bool(there.all()):
        likeness = likeness.masked_fill(~there[:, None, 1::2], -torch.inf)
    best, partner = likeness.max(-1)
    edge = best.masked_fill(~there[:, ::2], -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(edge.shape[1], device=edge.device).expand_as(edge)
    merged = torch.zeros_like(edge, dtype=torch.bool).scatter(1, edge, rank < merges[:, None])
    joined = place.expand(total.shape[:2]).clone()
    joined[:, ::2] = torch.where(merged, 2 * partner + 1, joined[:, ::2])
    return joined
