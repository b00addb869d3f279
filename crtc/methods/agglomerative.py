"""Agglomerative clustering: the two most similar clusters become one until k are left."""

from typing import Literal

from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from crtc.clustering import Linkage, agglomerate
from crtc.merging import central_members, make_plan, mean
from crtc.methods.method import Method
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens
from crtc.ward import ward_tree


class Agglomerative(Method):
    """Merges the nearest pair of clusters, in cosine distance, until k are left, and keeps the mean of each.

    The same partition as `sklearn.cluster.AgglomerativeClustering`. A mean stands at the place of its cluster's member
    that is nearest to it in direction. Deviations: PACT, which compares with it, clusters the keys of a layer of the
    language model, and its configuration has single linkage.

    Args:
        linkage: distance of two clusters: "average" over their pairs, "single" for the smallest, "complete" for the
            largest, "ward" for the growth of the sum of squares within clusters, of directions.
    """

    source = "agglomerative clustering, as a baseline in PACT, arXiv 2504.08966"
    licence = "MIT"
    place = "in the language model"
    family = "clustering"

    def __init__(self, linkage: Linkage | Literal["ward"] = "average"):
        super().__init__()
        if linkage not in ("average", "single", "complete", "ward"):
            raise ValueError(f"linkage is {linkage!r}, expected average, single, complete or ward")
        self.linkage: Linkage | Literal["ward"] = linkage

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep one token for each of `k[g]` clusters of every group."""
        groups = Groups.of(tokens)
        x = groups.gather(tokens.x)
        if self.linkage == "ward":
            label = ward_tree(F.normalize(x.float(), dim=-1), groups.valid.float(), groups.valid).cut(k)
        else:
            label = agglomerate(1 - cosine(x), groups.valid, k, self.linkage)
        owner = central_members(x, label, groups.valid)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))
