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
    """Cluster of every token, named by its first member; one merge a step in every group that has too many, O(M^2)."""
    num = distance.shape[1]
    rows, places = torch.arange(len(distance), device=distance.device), torch.arange(num, device=distance.device)
    full = torch.minimum(distance, distance.transpose(1, 2))  # rounding must not decide between the two
    alive = valid.clone()
    # each pair once, the later token first
    pairs = full.masked_fill(~(alive[:, None] & alive[..., None] & (places < places[:, None])), torch.inf)
    label, size, left = places.expand_as(valid).clone(), valid.to(distance.dtype), valid.sum(1)
    while bool((left > k).any()):
        active = left > k
        nearest = pairs.flatten(1).argmin(1)
        gone, stays = nearest // num, nearest % num
        mine, other = full[rows, stays], full[rows, gone]
        if linkage == "average":
            weight = (size[rows, stays] / (size[rows, stays] + size[rows, gone]))[:, None]
            joined = weight * mine + (1 - weight) * other
        else:
            joined = torch.minimum(mine, other) if linkage == "single" else torch.maximum(mine, other)
        joined = torch.where(active[:, None], joined, mine)
        size[rows, stays] += size[rows, gone] * active
        alive[rows, gone] &= ~active
        full[rows, stays], full[rows, :, stays] = joined, joined
        for one in (gone, stays):  # of a finished group nothing changes
            found = full[rows, one].masked_fill(~alive | ~alive[rows, one][:, None], torch.inf)
            pairs[rows, one] = found.masked_fill(places >= one[:, None], torch.inf)
            pairs[rows, :, one] = found.masked_fill(places <= one[:, None], torch.inf)
        label = torch.where(active[:, None] & (label == gone[:, None]), stays[:, None], label)
        left = left - active.long()
    return label
