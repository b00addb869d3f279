"""Communities of the token graph: tokens that are linked more with each other than with the rest (0803.0476)."""

import networkx
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.merging import central_members, make_plan, mean
from crtc.methods.method import Method
from crtc.similarity import nearest_neighbors
from crtc.tokens import Groups, Plan, Tokens


class Louvain(Method):
    """Finds communities of the nearest-neighbor graph by modularity and keeps the mean of each.

    Edges join every token with its nearest neighbors by cosine, both ways. Louvain's levels join communities into
    larger ones; the coarsest level that has k or more is taken, single tokens if there is none, and the pair whose
    union adds most modularity becomes one until k are left. A mean stands at the place of its community's member that
    is nearest to it in direction.

    Args:
        neighbors: of every token.
        resolution: more makes smaller communities.
        seed: of the order in which Louvain visits the tokens.
    """

    source = "Louvain, arXiv 0803.0476, by networkx; joined as Clauset, Newman and Moore 2004"
    licence = "BSD-3-Clause"
    family = "graph"
    uses_order = True

    def __init__(self, *, neighbors: int = 8, resolution: float = 1.0, seed: int = 0):
        super().__init__()
        if neighbors < 1:
            raise ValueError(f"neighbors is {neighbors!r}, expected at least 1")
        if resolution <= 0:
            raise ValueError(f"resolution is {resolution!r}, expected more than 0")
        self.neighbors = neighbors
        self.resolution = resolution
        self.seed = seed

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep one token for each of `k[g]` communities of every group."""
        groups = Groups.of(tokens)
        x = groups.gather(tokens.x)
        edges = nearest_neighbors(x, groups.valid, self.neighbors)
        label = torch.arange(edges.shape[1], device=k.device).expand(groups.valid.shape).clone()
        for row, (graph, size, num) in enumerate(
            zip(edges.cpu(), groups.valid.sum(1).tolist(), k.tolist(), strict=True)
        ):
            for community in self.communities(graph[:size, :size], num):
                label[row, list(community)] = min(community)
        label = join(edges.double(), label, groups.valid, k, self.resolution)
        owner = central_members(x, label, groups.valid)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))

    def communities(self, edges: Float[Tensor, "n n"], least: int) -> list[set[int]]:
        """Louvain's coarsest level of `least` communities or more; none if all its levels have fewer."""
        graph = networkx.Graph()
        graph.add_nodes_from(range(len(edges)))
        one, other = edges.triu(1).nonzero(as_tuple=True)
        graph.add_weighted_edges_from(zip(one.tolist(), other.tolist(), edges[one, other].tolist(), strict=True))
        found: list[set[int]] = []
        for level in networkx.community.louvain_partitions(graph, resolution=self.resolution, seed=self.seed):
            if len(level) < least:
                break
            found = level
        return found


def join(
    edges: Float[Tensor, "G M M"],
    label: Int[Tensor, "G M"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    resolution: float,
) -> Int[Tensor, "G M"]:
    """Unite the pair of communities that adds most modularity until `k[g]` are left; a step is O(M^2).

    Args:
        edges: symmetric.
        label: community of every token, named by its first member; so is the answer.
    """
    num = edges.shape[1]
    rows, places = torch.arange(len(edges), device=edges.device), torch.arange(num, device=edges.device)
    member = (label[..., None] == places).to(edges.dtype) * valid[..., None]
    between = member.transpose(1, 2) @ edges @ member
    total = between.sum((1, 2)).clamp(min=torch.finfo(edges.dtype).tiny)[:, None, None]
    alive = member.any(1)
    left = alive.sum(1)
    while bool((left > k).any()):
        active = left > k
        degree = between.sum(-1)
        gain = between / total - resolution * (degree / total[..., 0])[:, :, None] * (degree / total[..., 0])[:, None]
        pair = alive[:, None] & alive[..., None] & (places > places[:, None])
        best = gain.masked_fill(~pair, -torch.inf).flatten(1).argmax(1)
        stays, gone = best // num, best % num
        moved = between[rows, gone] * active[:, None]
        between[rows, stays] += moved
        between[rows, gone] -= moved
        moved = between[rows, :, gone] * active[:, None]
        between[rows, :, stays] += moved
        between[rows, :, gone] -= moved
        alive[rows, gone] &= ~active
        label = torch.where(active[:, None] & (label == gone[:, None]), stays[:, None], label)
        left = left - active.long()
    return label
