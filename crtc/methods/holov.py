"""HoloV: every crop of the image gets its share of the tokens (NeurIPS 2025)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.selection import raster, top_k
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens

_TINY = 1e-6


class HoloV(Method):
    """Divides k over crops by their attention and variety; in each crop the most attended tokens stay.

    The crops are equal stretches of the raster order. A token scores 1000 a_i + alpha c v_i with the [CLS] attention a,
    the variance v_i of its cosines with the others of its crop, and c such that both have the same mean in a crop. A
    crop's part of k goes with the mean score of its tokens, rounded down; the crops with the largest parts get one more
    until k are given.

    Deviations: what a crop gets beyond its size goes to the most attended tokens elsewhere, where the code fills up
    with zeros; where crops are of one token, these are scored like all; kept tokens stay in their order; dropped tokens
    give their mass to the kept token most like them.

    Args:
        crops: of an image.
        alpha: weight of variety.
    """

    source = "HoloV, arXiv 2510.02912"
    licence = "Apache-2.0"
    family = "saliency"
    needs = frozenset({"cls_attention", "grid"})

    def __init__(self, *, crops: int = 16, alpha: float = 0.09):
        super().__init__()
        if crops < 1:
            raise ValueError(f"crops is {crops!r}, expected at least 1")
        if alpha < 0:
            raise ValueError(f"alpha is {alpha!r}, expected 0 or more")
        self.crops = crops
        self.alpha = alpha

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep `k[g]` tokens of every group, spread over its crops."""
        groups = Groups.of(tokens)
        assert tokens.signals.cls_attention is not None
        attention = groups.gather(tokens.signals.cls_attention.float())
        label = stretches(raster(groups.gather(tokens.grid), groups.valid), groups.valid, self.crops)
        inside, real = self.side_by_side(label.masked_fill(~groups.valid, self.crops))
        attended = attention.gather(1, inside.flatten(1)).view(inside.shape)
        rows = tokens.x[groups.index.gather(1, inside.flatten(1))].view(-1, inside.shape[2], tokens.x.shape[1])
        variety = self.variety(cosine(rows), real.flatten(0, 1)).view(inside.shape)
        parts = shares(self.means(attended, variety, real), k)
        order = attended.masked_fill(~real, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        rank = torch.arange(order.shape[-1], device=k.device)
        first = torch.zeros_like(real).scatter(-1, order, rank < parts[..., None]) & real
        first = torch.zeros_like(groups.valid).scatter_add(1, inside.flatten(1), first.flatten(1))
        return give_mass(tokens, groups, top_k(attention.masked_fill(first, torch.inf), groups.valid, k))

    def side_by_side(self, label: Int[Tensor, "G M"]) -> tuple[Int[Tensor, "G C L"], Bool[Tensor, "G C L"]]:
        """The places of every crop's tokens, in their order, and which of them are real."""
        member = label[..., None] == torch.arange(self.crops, device=label.device)
        count = member.sum(1)
        start = count.cumsum(1) - count
        within = torch.arange(int(count.max()), device=label.device)
        at = (start[..., None] + within).clamp(max=label.shape[1] - 1)
        places = label.argsort(dim=1, stable=True).gather(1, at.flatten(1))
        return places.view(at.shape), within < count[..., None]

    def variety(self, likeness: Float[Tensor, "C L L"], real: Bool[Tensor, "C L"]) -> Float[Tensor, "C L"]:
        """Variance of every token's cosines within its crop, by the code's formula, where its own counts as 0."""
        same = real[:, None] & real[..., None]
        own = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        others = (same.sum(-1, keepdim=True) - 1).clamp(min=1)
        seen = likeness.masked_fill(~same | own, 0)
        mean = seen.sum(-1, keepdim=True) / others
        return ((seen - mean).square() * same).sum(-1) / others[..., 0]

    def means(
        self, attention: Float[Tensor, "G C L"], variety: Float[Tensor, "G C L"], real: Bool[Tensor, "G C L"]
    ) -> Float[Tensor, "G C"]:
        """Mean score of every crop, 0 where it is empty."""
        count = real.sum(-1).clamp(min=1)
        attended = (1e3 * attention * real).sum(-1) / count
        varied = (variety * real).sum(-1) / count
        return attended + self.alpha * varied * attended / (varied + _TINY)


def stretches(position: Int[Tensor, "G M"], valid: Bool[Tensor, "G M"], parts: int) -> Int[Tensor, "G M"]:
    """Cut n places into stretches of n // parts, the first n % parts of them one longer; the number of each place's."""
    short, longer = valid.sum(1)[:, None] // parts, valid.sum(1)[:, None] % parts
    border = longer * (short + 1)
    late = longer + (position - border) // short.clamp(min=1)
    return torch.where(position < border, position // (short + 1), late).clamp(max=parts - 1)


def shares(score: Float[Tensor, "G C"], k: Int[Tensor, " G"]) -> Int[Tensor, "G C"]:
    """Whole parts of k in proportion to the scores: rounded down, then one more each for the largest."""
    weight = score / (score.sum(1, keepdim=True) + _TINY)
    given = (weight * k[:, None]).floor().long()
    order = weight.argsort(dim=1, descending=True, stable=True)
    rank = torch.zeros_like(order).scatter(1, order, torch.arange(score.shape[1], device=k.device).expand_as(order))
    return given + (rank < (k - given.sum(1))[:, None]).long()
