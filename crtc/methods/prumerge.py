"""LLaVA-PruMerge: attended tokens that take in those with similar keys, and PruMerge+ with evenly spaced ones as well.

The rules are those of the authors' code (2403.15388).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.batching import by_group
from crtc.merging import make_plan
from crtc.methods.method import Method
from crtc.selection import raster, top_k
from crtc.tokens import DROPPED, Groups, Plan, Tokens


class PruMerge(Method):
    """Keeps the tokens of highest [CLS] attention; each takes in others of similar keys, weighted by their attention.

    y_i = x_i + sum of a_j x_j over the tokens j among the `neighbors` nearest of i by cosine of the keys; the weights
    are not normalised, as in the authors' code.

    Deviations: k is given, where the code counts the outliers of the attention; a token joins the most similar of the
    kept tokens whose neighbor it is, where the code adds it to all of these, and kept tokens are not added to each
    other; the code's one extra token, the sum of a_j x_j over all dropped tokens, is left out; tokens that are nobody's
    neighbor only give their mass; attention is the mean over heads, where the code takes one head of full width in the
    last layer; kept tokens stay in their order; merging is after the projector.

    Args:
        neighbors: of a kept token: 32 at inference, 16 in the code for training.
    """

    source = "LLaVA-PruMerge, arXiv 2403.15388"
    licence = "Apache-2.0"
    place = "before the projector"
    family = "saliency"
    needs = frozenset({"cls_attention", "keys"})

    def __init__(self, *, neighbors: int = 32):
        super().__init__()
        if neighbors < 1:
            raise ValueError(f"neighbors is {neighbors!r}, expected at least 1")
        self.neighbors = neighbors

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep `k[g]` attended tokens of every group, with what is like them."""
        groups = Groups.of(tokens)
        attention, keys = tokens.signals.cls_attention, tokens.signals.keys
        assert attention is not None and keys is not None
        weight = groups.gather(attention.float())
        kept = self.choose(weight, groups, tokens, k)
        anchors = kept.long().argsort(dim=1, descending=True, stable=True)[:, : int(k.max())]
        parts = (groups.gather(keys), groups.valid, anchors, kept.gather(1, anchors))
        owner, taken = by_group(self.takes, *parts)
        owner = torch.where(kept, torch.arange(owner.shape[1], device=k.device), owner)
        share = torch.where(taken, weight, 0).masked_fill(kept, 1)
        return make_plan(tokens, groups, owner.masked_fill(~groups.valid, DROPPED), share)

    def takes(
        self,
        keys: Float[Tensor, "G M D"],
        valid: Bool[Tensor, "G M"],
        anchors: Int[Tensor, "G K"],
        real: Bool[Tensor, "G K"],
    ) -> tuple[Int[Tensor, "G M"], Bool[Tensor, "G M"]]:
        """For every token the most similar kept one whose neighbor it is, or of all, and whether it is one's."""
        unit = F.normalize(keys.float(), dim=-1)
        likeness = unit.gather(1, anchors[..., None].expand(-1, -1, unit.shape[-1])) @ unit.transpose(1, 2)
        likeness = likeness.masked_fill(~real[..., None], -torch.inf)
        own = anchors[..., None] == torch.arange(keys.shape[1], device=keys.device)
        others = likeness.masked_fill(~valid[:, None] | own, -torch.inf)
        order = others.argsort(dim=-1, descending=True, stable=True)
        far = torch.ones_like(own).scatter(-1, order[..., : self.neighbors], False)
        best, closest = others.masked_fill(far, -torch.inf).max(1)
        taken = best.isfinite()
        return anchors.gather(1, torch.where(taken, closest, likeness.argmax(1))), taken

    def choose(
        self, attention: Float[Tensor, "G M"], groups: Groups, tokens: Tokens, k: Int[Tensor, " G"]
    ) -> Bool[Tensor, "G M"]:
        """The tokens that stay."""
        return top_k(attention, groups.valid, k)


class PruMergePlus(PruMerge):
    """PruMerge with tokens at even steps beside the attended ones.

    With t attended tokens of n, those at every `n // t // 3`-th place but the last are kept as well, about three times
    as many. t is the largest for which no more than k are kept in all, and what is missing to k is filled by attention.

    Deviations: those of `PruMerge`; the code takes t from the outliers of the attention and fails above n / 3.

    Args:
        neighbors: of a kept token.
    """

    source = "LLaVA-PruMerge+, arXiv 2403.15388"
    needs = frozenset({"cls_attention", "keys", "grid"})

    def choose(
        self, attention: Float[Tensor, "G M"], groups: Groups, tokens: Tokens, k: Int[Tensor, " G"]
    ) -> Bool[Tensor, "G M"]:
        """The attended and the evenly spaced tokens."""
        valid = groups.valid
        size, place = valid.sum(1)[:, None, None], torch.arange(valid.shape[1], device=k.device)
        position = raster(groups.gather(tokens.grid), valid)[:, None]
        order = attention.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.zeros_like(order).scatter(1, order, place.expand_as(order))[:, None]
        attended = place[: int(k.max()) + 1, None]  # one row for every number t of attended tokens
        step = (size // attended.clamp(min=1) // 3).clamp(min=1)
        even = (position % step == 0) & (position < (size - 1).clamp(min=1)) & (attended > 0)
        chosen = (even | (rank < attended)) & valid[:, None]
        most = (chosen.sum(-1) <= k[:, None]).long().cumsum(1).argmax(1)
        both = chosen[torch.arange(len(k), device=k.device), most]
        return top_k(attention.masked_fill(both, torch.inf), valid, k)
