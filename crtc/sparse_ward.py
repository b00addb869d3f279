"""Weighted Ward clusters of a flat list of tokens, joined along edges: memory of the edges instead of all pairs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crtc.batching import by_group
from crtc.graph.neighbors import owner_groups
from crtc.graph.radius import Edges, squared_lengths
from crtc.ward import ward_tree


@dataclass(frozen=True)
class WardForest:
    """In which order the clusters of every owner are joined. A cluster is named by its first token.

    Args:
        parent: the cluster that the cluster of this name is joined to; itself where it never is.
        rank: when this happens, counted from 0 for every owner; N for never.
        owner: of every token, -1 for those that are in no cluster but their own.
        size: tokens of every owner.
        components: clusters of every owner that are left where no edge is: of fewer than these, the last are joined
            over gaps.
    """

    parent: Int[Tensor, " N"]
    rank: Int[Tensor, " N"]
    owner: Int[Tensor, " N"]
    size: Int[Tensor, " G"]
    components: Int[Tensor, " G"]

    def cut(self, k: Int[Tensor, " G"]) -> Int[Tensor, " N"]:
        """The first member of every token's cluster, where `k[g]` clusters are left; all tokens where there are fewer.

        Example:
            >>> x, owner = torch.tensor([[0.0], [1.0], [3.0]]), torch.zeros(3, dtype=torch.long)
            >>> ward_tree_on(x, torch.ones(3), owner, radius_edges(x, owner, 1.5)).cut(torch.tensor([2]))
            tensor([0, 0, 2])

        Raises:
            ValueError: if `k` has another shape or is less than 1 for an owner with tokens.
        """
        if k.shape != self.size.shape:
            raise ValueError(f"k is {tuple(k.shape)}, expected {tuple(self.size.shape)}, one for every owner")
        if bool(((k < 1) & (self.size > 0)).any()):
            raise ValueError(f"k is {int(k[self.size > 0].min())}, expected at least 1 cluster for every owner")
        joins = (self.size - k).clamp(min=0)
        # a token of no owner never joins, so any owner's number does for it
        joined = self.rank < joins[self.owner] if len(joins) else torch.zeros_like(self.rank, dtype=torch.bool)
        label = torch.where(joined, self.parent, torch.arange(len(self.parent), device=self.parent.device))
        while True:  # pointers double, so this ends after the logarithm of the tree's depth
            further = label[label]
            if torch.equal(further, label):
                return label
            label = further


def ward_tree_on(
    x: Float[Tensor, "N D"], weight: Float[Tensor, " N"], owner: Int[Tensor, " N"], edges: Edges
) -> WardForest:
    """Join two clusters that share an edge and cost least, `w_a w_b / (w_a + w_b) |c_a - c_b|^2`, until none does.

    The sparse form of `crtc.ward.ward_tree`, by the same rounds of mutual nearest neighbours, and its equal where all
    tokens of an owner share edges and no two joins cost the same. Where edges lack, a join may become cheaper than what
    it is made of; it is then put right behind that, and the rounds, which join what is mutual at once, may differ from
    joins one by one.

    What has no edges left, the components of every owner, is joined by `ward_tree` with their means and weights, so
    that there is a cut for every count. This holds the square of the most components that an owner has: memory is that
    of the edges where edges reach far, and that of `ward_tree` where hardly any does.

    A round takes time linear in nodes and edges, and rounds are few where tokens have neighbours of their own. Around
    one hub that is the only neighbour of many, they are as many as these.

    Example:
        >>> x, owner = torch.tensor([[0.0], [1.0], [3.0], [3.5]]), torch.zeros(4, dtype=torch.long)
        >>> ward_tree_on(x, torch.ones(4), owner, radius_edges(x, owner, 1.5)).cut(torch.tensor([3]))
        tensor([0, 1, 2, 2])

    Args:
        x: tokens; float16 and bfloat16 are read as float32.
        weight: of every token, positive.
        owner: whose a token is, 0 to G - 1 (-1: nobody's, which is not read).
        edges: which tokens may be joined; costs come from `x`.

    Raises:
        ValueError: if shapes disagree, a token or its weight is not finite, a weight is not positive, or an edge joins
            tokens of two owners or of none.
    """
    num, device = len(x), x.device
    if edges.num != num or weight.shape != (num,) or owner.shape != (num,):
        raise ValueError(
            f"weight is {tuple(weight.shape)}, owner {tuple(owner.shape)} and the edges are of {edges.num} tokens, "
            f"expected {num} of each"
        )
    name = (owner >= 0).nonzero()[:, 0]
    name = name[owner[name].argsort(stable=True)]
    centre = x[name].to(torch.promote_types(x.dtype, torch.float32))
    total = weight[name].to(centre.dtype)
    finite = centre.isfinite().all(1) & total.isfinite()
    if not bool(finite.all()):
        raise ValueError(f"{int((~finite).sum())} of {len(name)} tokens or their weights are not finite")
    if bool((total <= 0).any()):
        raise ValueError(f"weight is {float(total.min())}, expected positive weights")
    if bool(((owner[edges.source] != owner[edges.target]) | (owner[edges.source] < 0)).any()):
        raise ValueError("an edge joins tokens of two owners or of none, expected edges within owners")
    size = torch.bincount(owner[name])
    place = torch.zeros(num, dtype=torch.long, device=device)
    place[name] = torch.arange(len(name), device=device)
    once = edges.source < edges.target
    one, other = place[edges.source[once]], place[edges.target[once]]
    cost = _costs(centre, total, one, other)
    height = torch.zeros_like(total)
    parent = torch.arange(num, device=device)
    gone, gone_at = [name[:0]], [height[:0]]
    while len(one):
        own = torch.arange(len(name), device=device)
        start = torch.searchsorted(owner[name], owner[name])
        ends, both = torch.cat([one, other]), cost.repeat(2)
        least = torch.full_like(total, torch.inf).scatter_reduce_(0, ends, both, "amin")
        # Of equal costs the least XOR of places: no two neighbours have the same, so some pair always is mutual, and
        # copies pair up instead of queueing for the first of them. It tells the neighbour, too.
        cheapest = (both == least[ends]).nonzero()[:, 0]
        here, pair = ends[cheapest], cheapest % len(one)
        tie = (one[pair] - start[one[pair]]) ^ (other[pair] - start[other[pair]])
        tie = torch.zeros_like(own).scatter_reduce_(0, here, tie, "amin", include_self=False)
        near = start + ((own - start) ^ tie)
        low = ((near[near] == own) & (own < near)).nonzero()[:, 0]
        high = near[low]
        # the mean in the form that leaves copies where they are
        both = total[low] + total[high]
        centre[low] += (total[high] / both)[:, None] * (centre[high] - centre[low])
        total[low] = both
        # a join is not put before those that it is made of
        height[low] = torch.stack([least[low], height[low], height[high]]).amax(0)
        parent[name[high]] = name[low]
        gone.append(name[high])
        gone_at.append(height[low])
        stays = torch.ones_like(own, dtype=torch.bool)
        stays[high] = False
        moved = ~stays
        moved[low] = True
        into = stays.cumsum(0) - 1
        into[high] = into[low]
        anew = moved[one] | moved[other]
        changed, same = anew.nonzero()[:, 0], (~anew).nonzero()[:, 0]
        name, centre, total, height = name[stays], centre[stays], total[stays], height[stays]
        # only edges of what was joined coincide, vanish or have another cost
        a, b = into[one[changed]], into[other[changed]]
        key = torch.unique((torch.minimum(a, b) * len(name) + torch.maximum(a, b))[a != b])
        a, b = key // len(name), key % len(name)
        one, other = torch.cat([into[one[same]], a]), torch.cat([into[other[same]], b])
        cost = torch.cat([cost[same], _costs(centre, total, a, b)])
    components = torch.bincount(owner[name], minlength=len(size))
    joined, at = torch.cat(gone), torch.cat(gone_at)  # by rounds, which sorting keeps among equal heights
    joined = joined[at.argsort(stable=True)]
    joined = joined[owner[joined].argsort(stable=True)]
    rank = torch.full_like(parent, num)
    begin = (size - components).cumsum(0) - (size - components)
    rank[joined] = torch.arange(len(joined), device=device) - begin[owner[joined]]
    several = components[owner[name]] > 1
    if bool(several.any()):
        name, centre, total = name[several], centre[several], total[several]
        groups = owner_groups(torch.unique(owner[name], return_inverse=True)[1])
        rest = by_group(_join_all, groups.gather(centre), groups.gather(total), groups.valid)
        inside = groups.valid
        absorber, late = name[groups.index.gather(1, rest[0])[inside]], rest[1][inside]
        name, width = name[groups.index[inside]], inside.shape[1]
        parent[name] = absorber
        rank[name] = torch.where(late < width, (size - components)[owner[name]] + late, num)
    return WardForest(parent, rank, owner, size, components)


def _join_all(
    centre: Float[Tensor, "G M D"], total: Float[Tensor, "G M"], valid: Tensor
) -> tuple[Int[Tensor, "G M"], Int[Tensor, "G M"]]:
    """Parent and rank of `ward_tree`, as its caller shares work out."""
    tree = ward_tree(centre, total, valid)
    return tree.parent, tree.rank


def _costs(
    centre: Float[Tensor, "V D"], total: Float[Tensor, " V"], one: Int[Tensor, " P"], other: Int[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """What it costs to join the ends of every edge."""
    return squared_lengths(centre, one, other) / (1 / total[one] + 1 / total[other])
