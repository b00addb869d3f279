"""Clustering on whole padded batches of groups, with exactly `k[g]` clusters per group whatever the tokens are."""

from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn import functional as F

from crtc.batching import by_group, sums
from crtc.tokens import DROPPED

Linkage = Literal["average", "single", "complete"]


def k_means(
    x: Float[Tensor, "G M D"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    *,
    spherical: bool = False,
    seed: int = 0,
    iterations: int = 20,
    tolerance: float = 1e-4,
) -> Int[Tensor, "G M"]:
    """Owner map: every token joins the medoid of its cluster, the member nearest to the cluster's mean.

    Starts with k-means++. A group's draws depend on the seed alone, and a group stops by itself, so its clusters do not
    depend on the others of the batch.

    Args:
        spherical: directions instead of points: tokens and centres have length one.
        seed: of the start.
        iterations: at most as many updates of the centres.
        tolerance: a group stops when no centre moves farther than this share of the tokens' spread (the root mean
            square of their distance from their mean).
    """
    x = x.float()
    if spherical:
        x = F.normalize(x, dim=-1)
    spread = _centred(x, valid)
    # Distances come from products; they lose fewer digits near the origin.
    x = x if spherical else spread
    scale = (spread.square().sum((1, 2)) / valid.sum(1)).sqrt()
    real = torch.arange(int(k.max()), device=x.device) < k[:, None]

    first = k_means_plus_plus(x, valid, k, seed)
    centre = x.gather(1, first[..., None].expand(-1, -1, x.shape[-1]))
    label = _assign(_squared_distance(x, centre, real), valid, real)
    rows = torch.arange(len(x), device=x.device)  # of the groups that still move
    for _ in range(iterations):
        fresh = _means(x[rows], label[rows], valid[rows], real[rows], spherical)
        moved = (fresh - centre[rows]).norm(dim=-1).masked_fill(~real[rows], 0).amax(1)
        centre[rows] = fresh
        rows = rows[moved > tolerance * scale[rows]]
        if not len(rows):
            break
        label[rows] = _assign(_squared_distance(x[rows], centre[rows], real[rows]), valid[rows], real[rows])

    distance = _squared_distance(x, _means(x, label, valid, real, spherical), real)
    member = _members(label, valid, real)
    distance = distance.masked_fill(~member, torch.inf)
    # The two members of a pair are equally near to their mean; rounding must not decide between them.
    near = distance <= distance.amin(1, keepdim=True) + 1e-5 * scale.square()[:, None, None]
    medoid = (near & member).long().argmax(1)
    return medoid.gather(1, label).masked_fill(~valid, DROPPED)


def k_means_plus_plus(
    x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"], seed: int
) -> Int[Tensor, "G K"]:
    """Different places to start from: each next one drawn with odds of its squared distance to those before.

    Columns from `k[g]` on repeat chosen places. Step i uses the i-th draw of the seed in every group.
    """
    steps, rows = int(k.max()), torch.arange(len(x), device=x.device)
    draws = torch.rand(steps, generator=torch.Generator().manual_seed(seed)).to(x.device).double()
    length = x.square().sum(-1)
    columns = x.transpose(1, 2).contiguous()  # for products with one row, many times as fast on a CPU
    left = valid.clone()
    nearest = left.float()
    first = torch.zeros(len(x), steps, dtype=torch.long, device=x.device)
    for step in range(steps):
        # Where all that is left coincides with what is chosen, any of it will do.
        odds = torch.where((nearest * left).sum(1, keepdim=True) > 0, nearest * left, left.float()).double()
        mass = odds.cumsum(1)
        drawn = (mass > draws[step] * mass[:, -1:]).long().argmax(1)
        place = torch.where(step < k, drawn, first[:, 0])
        first[:, step] = place
        left[rows, place] = False
        product = (x[rows, place][:, None] @ columns)[:, 0]
        distance = (length + length[rows, place][:, None] - 2 * product).clamp(min=0)
        nearest = distance if step == 0 else torch.minimum(nearest, distance)
    return first


def _centred(x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"]) -> Float[Tensor, "G M D"]:
    """Tokens minus the mean of their group; 0 where padded."""
    mean = x.sum(1, keepdim=True) / valid.sum(1)[:, None, None]
    return (x - mean) * valid[..., None]


def _squared_distance(
    x: Float[Tensor, "G M D"], centre: Float[Tensor, "G K D"], real: Bool[Tensor, "G K"]
) -> Float[Tensor, "G M K"]:
    """Squared distance of every token to every centre, infinite to those that are not real."""
    product = x @ centre.transpose(1, 2)
    distance = x.square().sum(-1)[..., None] + centre.square().sum(-1)[:, None] - 2 * product
    return distance.clamp(min=0).masked_fill(~real[:, None], torch.inf)


def _members(label: Int[Tensor, "G M"], valid: Bool[Tensor, "G M"], real: Bool[Tensor, "G K"]) -> Bool[Tensor, "G M K"]:
    """Which token is in which cluster."""
    return (label[..., None] == torch.arange(real.shape[1], device=label.device)) & valid[..., None]


def _means(
    x: Float[Tensor, "G M D"],
    label: Int[Tensor, "G M"],
    valid: Bool[Tensor, "G M"],
    real: Bool[Tensor, "G K"],
    spherical: bool,
) -> Float[Tensor, "G K D"]:
    """Centres of the clusters."""
    number = torch.zeros_like(real, dtype=torch.long).scatter_add(1, label, valid.long())
    mean = sums(x * valid[..., None], label, real.shape[1]) / number.clamp(min=1)[..., None]
    return F.normalize(mean, dim=-1) if spherical else mean


def _assign(
    distance: Float[Tensor, "G M K"], valid: Bool[Tensor, "G M"], real: Bool[Tensor, "G K"]
) -> Int[Tensor, "G M"]:
    """The nearest centre of every token; a cluster that would be empty takes the token farthest from its own centre.

    One token of every other cluster, its nearest, is not taken, so no cluster is emptied to fill another.
    """
    own, label = distance.min(-1)
    number = torch.zeros_like(real, dtype=torch.long).scatter_add(1, label, valid.long())
    empty = (number == 0) & real
    if not bool(empty.any()):
        return label
    member = _members(label, valid, real)
    nearest = distance.masked_fill(~member, torch.inf).argmin(1)
    stays = torch.zeros_like(label).scatter_add(1, nearest, member.any(1).long()) > 0
    # Every token has a finite distance, so those that stay are after all that may go.
    order = own.masked_fill(stays | ~valid, -1).argsort(dim=1, descending=True, stable=True)[:, : real.shape[1]]
    vacant = empty.long().argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(real.shape[1], device=label.device)
    moves = rank < empty.sum(1, keepdim=True)
    return label.scatter(1, order, torch.where(moves, vacant, label.gather(1, order)))


def agglomerate(
    distance: Float[Tensor, "G M M"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    linkage: Linkage,
) -> Int[Tensor, "G M"]:
    """Cluster of every token, named by its first member: of scipy on a CPU, of `merge_step_by_step` on a GPU.

    Where distances tie exactly, as among copies of a token, the two may join other pairs.

    Args:
        distance: finite between any two tokens.
        linkage: distance of two clusters: "average" over their pairs, "single" for the smallest, "complete" for the
            largest.
    """
    if distance.device.type != "cpu":
        return merge_step_by_step(distance, valid, k, linkage)
    (label,) = by_group(partial(_cut_tree, linkage=linkage), distance.detach(), valid, k)
    return label


def _cut_tree(
    distance: Float[Tensor, "1 M M"], valid: Bool[Tensor, "1 M"], k: Int[Tensor, "1"], linkage: Linkage
) -> tuple[Int[Tensor, "1 M"]]:
    label = torch.arange(distance.shape[1])[None]
    inside = valid[0].nonzero()[:, 0]
    num = len(inside)
    if num > int(k):
        pairs = distance[0][inside][:, inside]
        # rounding must not decide between the two of a pair
        tree = hierarchy.linkage(squareform(torch.minimum(pairs, pairs.T).numpy(), checks=False), linkage)
        parent = np.arange(2 * num - int(k))  # tokens, and what the merges make of them
        for merge, children in enumerate(tree[: num - int(k), :2].astype(np.int64)):
            parent[children] = num + merge
        while (parent != parent[parent]).any():
            parent = parent[parent]
        _, first, cluster = np.unique(parent[:num], return_index=True, return_inverse=True)
        label[0, inside] = inside[torch.from_numpy(first[cluster])]
    return (label,)


def merge_step_by_step(
    distance: Float[Tensor, "G M M"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    linkage: Linkage,
) -> Int[Tensor, "G M"]:
    """`agglomerate` on the whole batch: one merge a step in every group that has too many.

    Every token knows the nearest of those before it, so a step looks again only for the few whose nearest has changed.
    """
    places = torch.arange(distance.shape[1], device=distance.device)
    apart = (places != places[:, None]) & valid[:, None] & valid[..., None]
    # rounding must not decide between the two of a pair; what is infinitely far is never joined
    full = torch.minimum(distance, distance.transpose(1, 2)).masked_fill(~apart, torch.inf)
    at = full.masked_fill(places >= places[:, None], torch.inf).argmin(2)
    least = full.gather(2, at[..., None])[..., 0].masked_fill(at >= places, torch.inf)
    label, left = places.expand_as(valid).clone(), valid.sum(1)
    size = valid.to(distance.dtype)
    while bool((left > k).any()):
        rows = (left > k).nonzero()[:, 0]
        gone = least[rows].argmin(1)
        stays = at[rows, gone]
        mine, other = full[rows, stays], full[rows, gone]
        if linkage == "average":
            share = (size[rows, stays] / (size[rows, stays] + size[rows, gone]))[:, None]
            joined = share * mine + (1 - share) * other
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
