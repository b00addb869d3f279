"""Agglomerative clustering: the two most similar clusters become one until k are left."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.merging import central_members, make_plan, mean
from crtc.methods.method import Method
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens

Linkage = Literal["average", "single", "complete"]


class Agglomerative(Method):
    """Merges the nearest pair of clusters, in cosine distance, until k are left, and keeps the mean of each.

    The same partition as `sklearn.cluster.AgglomerativeClustering`. A mean stands at the place of its cluster's member
    that is nearest to it in direction. Deviations: PACT, which compares with it, clusters the keys of a layer of the
    language model, and its configuration has single linkage.

    Args:
        linkage: distance of two clusters: "average" over their pairs, "single" for the smallest, "complete" for the
            largest.
    """

    source = "agglomerative clustering, as a baseline in PACT, arXiv 2504.08966"
    licence = "MIT"
    place = "in the language model"
    family = "clustering"

    def __init__(self, linkage: Linkage = "average"):
        super().__init__()
        if linkage not in get_args(Linkage):
            raise ValueError(f"linkage is {linkage!r}, expected one of {', '.join(get_args(Linkage))}")
        self.linkage: Linkage = linkage

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep one token for each of `k[g]` clusters of every group."""
        groups = Groups.of(tokens)
        x = groups.gather(tokens.x)
        label = agglomerate(1 - cosine(x), groups.valid, k, self.linkage)
        owner = central_members(x, label, groups.valid)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))


def agglomerate(
    distance: Float[Tensor, "G M M"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"], linkage: Linkage
) -> Int[Tensor, "G M"]:
    """Cluster of every token, named by its first member; one merge a step in every group that has too many.

    Every token knows the nearest of those before it, so a step looks again only for the few whose nearest has changed.
    """
    places = torch.arange(distance.shape[1], device=distance.device)
    apart = (places != places[:, None]) & valid[:, None] & valid[..., None]
    # rounding must not decide between the two of a pair; what is infinitely far is never joined
    full = torch.minimum(distance, distance.transpose(1, 2)).masked_fill(~apart, torch.inf)
    at = full.masked_fill(places >= places[:, None], torch.inf).argmin(2)
    least = full.gather(2, at[..., None])[..., 0].masked_fill(at >= places, torch.inf)
    label, size, left = places.expand_as(valid).clone(), valid.to(distance.dtype), valid.sum(1)
    while bool((left > k).any()):
        rows = (left > k).nonzero()[:, 0]
        gone = least[rows].argmin(1)
        stays = at[rows, gone]
        mine, other = full[rows, stays], full[rows, gone]
        if linkage == "average":
            weight = (size[rows, stays] / (size[rows, stays] + size[rows, gone]))[:, None]
            joined = weight * mine + (1 - weight) * other
        else:
            joined = torch.minimum(mine, other) if linkage == "single" else torch.maximum(mine, other)
        joined = joined.masked_fill((places == stays[:, None]) | (places == gone[:, None]), torch.inf)
        size[rows, stays] += size[rows, gone]
        full[rows, gone], full[rows, :, gone] = torch.inf, torch.inf
        full[rows, stays], full[rows, :, stays] = joined, joined
        least[rows, gone], at[rows, gone] = torch.inf, gone
        known, near = at[rows], least[rows]
        closer = (joined < near) | ((joined == near) & (stays[:, None] < known))
        closer &= (places > stays[:, None]) & joined.isfinite()
        at[rows], least[rows] = torch.where(closer, stays[:, None], known), torch.where(closer, joined, near)
        again = ((known == stays[:, None]) | (known == gone[:, None])) & (places != gone[:, None])
        again |= places == stays[:, None]
        batch, token = again.nonzero(as_tuple=True)
        found = full[rows[batch], token].masked_fill(places >= token[:, None], torch.inf)
        at[rows[batch], token] = nearest = found.argmin(1)
        least[rows[batch], token] = found.gather(1, nearest[:, None])[:, 0]
        label[rows] = torch.where(label[rows] == gone[:, None], stays[:, None], label[rows])
        left[rows] -= 1
    return label
