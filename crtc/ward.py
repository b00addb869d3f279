"""Weighted Ward clusters of whole padded batches: one tree for every count."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FAINT = 1e-6
"""Least weight, of the largest of a group, that callers give: no token joins another for free."""


@dataclass(frozen=True)
class WardTree:
    """In which order clusters are joined. A cluster is named by its first token.

    Args:
        parent: the cluster that the cluster of this name is joined to; itself where it never is.
        rank: when this happens, counted from 0 in every group; M for never.
        size: of the groups.
    """

    parent: Int[Tensor, "G M"]
    rank: Int[Tensor, "G M"]
    size: Int[Tensor, " G"]

    def cut(self, k: Int[Tensor, " G"]) -> Int[Tensor, "G M"]:
        """The first member of every token's cluster, where `k[g]` clusters are left."""
        own = torch.arange(self.parent.shape[1], device=self.parent.device).expand_as(self.parent)
        label = torch.where(self.rank < (self.size - k)[:, None], self.parent, own)
        while True:  # pointers double, so this ends after the logarithm of the tree's depth
            further = label.gather(1, label)
            if torch.equal(further, label):
                return label
            label = further


def ward_tree(x: Float[Tensor, "G M D"], weight: Float[Tensor, "G M"], valid: Bool[Tensor, "G M"]) -> WardTree:
    """Join the two clusters by which the weighted sum of squares within clusters grows least, until one is left.

    A join of a and b costs `w_a w_b / (w_a + w_b) |c_a - c_b|^2` (Ward, 1963). No join makes another cheaper, so
    clusters that are each other's nearest may be joined at once, whatever the order of the costs (Murtagh, 1983): a
    round joins all of these in every group, and what is left shrinks geometrically.

    Args:
        x: tokens, groups side by side.
        weight: of every token, positive.
        valid: where a token is; what stands elsewhere is not read.

    Raises:
        ValueError: if a token or its weight is not finite, which has no order.
    """
    groups, tokens = valid.shape
    x = torch.where(valid[..., None], x, 0.0)
    finite = x.isfinite().all(-1) & torch.where(valid, weight, 1.0).isfinite()
    if not bool(finite.all()):
        raise ValueError(f"{int((~finite).sum())} of {int(valid.sum())} tokens or their weights are not finite")
    places = torch.arange(tokens, device=x.device)
    total = torch.where(valid, weight, 1.0)
    # distances come from products, which lose fewer digits near the origin; the unit does not matter to the order
    centre = (x - (valid * total / (valid * total).sum(1, keepdim=True))[:, None] @ x) * valid[..., None]
    centre = centre / centre.square().sum((1, 2), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).sqrt()
    # copies pair up by it instead of queueing for the first of them
    apart = (places ^ places[:, None]) * torch.finfo(x.dtype).eps ** 2
    name = torch.where(valid, places, tokens)
    height = torch.zeros_like(total)
    # one place more takes what is written for padding
    parent = torch.cat([places, places.new_tensor([tokens])]).repeat(groups, 1)
    joined_at = torch.full((groups, tokens + 1), torch.inf, dtype=total.dtype, device=x.device)
    joined_in = torch.full((groups, tokens + 1), tokens, device=x.device)
    step = 0
    while total.shape[1] > 1:
        width = total.shape[1]
        gone = name == tokens
        square = centre.square().sum(-1).masked_fill(gone, torch.inf)
        cost = torch.baddbmm(square[:, :, None] + square[:, None], centre, centre.transpose(1, 2), alpha=-2)
        cost.clamp_(min=0).add_(apart[:width, :width])
        cost.div_(1 / total[:, :, None] + 1 / total[:, None]).diagonal(dim1=1, dim2=2).fill_(torch.inf)
        least, near = cost.min(2)
        first = least.argmin(1, keepdim=True)  # the nearest pair is mutual, also where rounding sees it from one side
        near.scatter_(1, near.gather(1, first), first)
        own = places[:width]
        mutual = (near.gather(1, near) == own) & ~gone & least.isfinite()
        other = torch.where(mutual, near, own)
        absorbed = mutual & (near < own)
        both = total + total.gather(1, other)
        share = torch.where(mutual, total / both, 1.0)[..., None]
        centre = share * centre + (1 - share) * centre.gather(1, other[..., None].expand_as(centre))
        # rounding must not put a join before those that it is made of
        height = torch.where(mutual, torch.maximum(least, torch.maximum(height, height.gather(1, other))), height)
        total = torch.where(mutual, both, total)
        written = torch.where(absorbed, name, tokens)
        parent.scatter_(1, written, name.gather(1, other))
        joined_at.scatter_(1, written, height)
        joined_in.scatter_(1, written, step)
        name = torch.where(absorbed, tokens, name)
        left = (name != tokens).sum(1)
        stays = (name == tokens).long().argsort(dim=1, stable=True)[:, : int(left.max())]
        total, name, height = total.gather(1, stays), name.gather(1, stays), height.gather(1, stays)
        centre = centre.gather(1, stays[..., None].expand(-1, -1, centre.shape[-1]))
        step += 1
    joined_at, joined_in = joined_at[:, :tokens], joined_in[:, :tokens]
    early = joined_in.argsort(dim=1, stable=True)
    order = early.gather(1, joined_at.gather(1, early).argsort(dim=1, stable=True))
    rank = torch.zeros_like(order).scatter_(1, order, places.expand_as(order).contiguous())
    rank = torch.where(joined_in < tokens, rank, tokens)
    return WardTree(parent[:, :tokens], rank, valid.sum(1))
