"""Communities of the token graph: tokens that are linked more with each other than with the rest (0803.0476)."""

import networkx
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.merging import central_members, make_plan, mean
from crtc.methods.method import Method
from crtc.similarity import nearest_neighbors
from crtc.tokens import Groups, Plan, Tokens

_DOUBLINGS = 12


class Louvain(Method):
    """Finds communities of the nearest-neighbor graph by modularity and keeps the mean of each.

    Edges join every token with its nearest neighbors by cosine, both ways. Louvain's levels join communities into
    larger ones; the coarsest level that has k or more is taken, at twice the resolution as often as there is none, and
    the pair whose union adds most modularity becomes one until k are left. A mean stands at the place of its
    community's member that is nearest to it in direction.

    Args:
        neighbors: of every token.
        resolution: to begin with; more makes smaller communities.
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
        label = torch.arange(edges.shape[1]).repeat(len(edges), 1)
        graphs, sizes = edges.cpu(), groups.valid.sum(1).tolist()
        for row, (size, least) in enumerate(zip(sizes, k.tolist(), strict=True)):
            for community in self.communities(graphs[row, :size, :size], least):
                label[row, list(community)] = min(community)
        label = join(edges.double(), label.to(k.device), groups.valid, k, self.resolution)
        owner = central_members(x, label, groups.valid)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))

    def communities(self, edges: Float[Tensor, "n n"], least: int) -> list[set[int]]:
        """Coarsest level of `least` communities or more at the smallest resolution that has one."""
        graph = networkx.Graph()
        graph.add_nodes_from(range(len(edges)))
        one, other = edges.triu(1).nonzero(as_tuple=True)
        graph.add_weighted_edges_from(zip(one.tolist(), other.tolist(), edges[one, other].tolist(), strict=True))
        for doubling in range(_DOUBLINGS):
            resolution = self.resolution * 2**doubling
            levels = networkx.community.louvain_partitions(graph, resolution=resolution, seed=self.seed)
            enough: list[list[set[int]]] = [level for level in levels if len(level) >= least]
            if enough:
                return enough[-1]
        return [{token} for token in graph]


def join(
    edges: Float[Tensor, "G M M"],
    label: Int[Tensor, "G M"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    resolution: float,
) -> Int[Tensor, "G M"]:
    """Unite the pair of communities that adds most modularity until `k[g]` are left; with C at first, C^2 a step.

    Args:
        edges: symmetric.
        label: community of every token, named by its first member; so is the answer.
    """
    places = torch.arange(edges.shape[1], device=edges.device)
    alive = (label == places) & valid
    left = alive.sum(1)
    name = alive.long().argsort(dim=1, descending=True, stable=True)[:, : int(left.max())]
    member = (label[..., None] == name[:, None]) & alive.gather(1, name)[:, None] & valid[..., None]
    between = member.to(edges.dtype).transpose(1, 2) @ edges @ member.to(edges.dtype)
    total = between.sum((1, 2)).clamp(min=torch.finfo(edges.dtype).tiny)[:, None, None]
    num, rows = name.shape[1], torch.arange(len(edges), device=edges.device)
    order, stands = torch.arange(num, device=edges.device), torch.arange(num, device=edges.device).expand_as(name)
    pair = (order > order[:, None]) & (order < left[:, None, None])
    while bool((left > k).any()):
        active = left > k
        degree = between.sum(-1, keepdim=True) / total
        gain = between / total - resolution * degree * degree.transpose(1, 2)
        best = gain.masked_fill(~pair, -torch.inf).flatten(1).argmax(1)
        one, gone = best // num, best % num
        moved = between[rows, gone] * active[:, None]
        between[rows, one] += moved
        between[rows, gone] -= moved
        moved = between[rows, :, gone] * active[:, None]
        between[rows, :, one] += moved
        between[rows, :, gone] -= moved
        pair[rows, gone] &= ~active[:, None]
        pair[rows, :, gone] &= ~active[:, None]
        stands = torch.where(active[:, None] & (stands == gone[:, None]), one[:, None], stands)
        left = left - active.long()
    return torch.where(valid, name.gather(1, stands).gather(1, member.long().argmax(-1)), label)
