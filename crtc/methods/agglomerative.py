"""Agglomerative clustering: the two most similar clusters become one until k are left."""

from typing import Literal

from jaxtyping import Int
from torch import Tensor

from crtc.clustering import Linkage, agglomerate
from crtc.merging import central_members, make_plan, mean
from crtc.methods.method import Method
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens


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

    def __init__(self, linkage: Literal["average", "single", "complete"] = "average"):
        super().__init__()
        if linkage not in ("average", "single", "complete"):
            raise ValueError(f"linkage is {linkage!r}, expected average, single or complete")
        self.linkage: Linkage = linkage

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep one token for each of `k[g]` clusters of every group."""
        groups = Groups.of(tokens)
        x = groups.gather(tokens.x)
        label = agglomerate(1 - cosine(x), groups.valid, k, self.linkage)
        owner = central_members(x, label, groups.valid)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))
