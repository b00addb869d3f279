"""DBDPC, the clustering of PACT: density peaks that are no nearer to each other than a cutoff (2504.08966)."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.batching import by_group
from crtc.merging import make_plan, mean
from crtc.methods.method import Method
from crtc.similarity import cosine
from crtc.tokens import DROPPED, Groups, Plan, Tokens

Metric = Literal["x", "keys"]
_HALVINGS = 20


class DBDPC(Method):
    """Goes through the tokens by density; each that is farther than the cutoff from all centres is a new centre.

    rho_i = sum_j exp(-(d_ij / 2)^2) with the cosine distance d. Every token joins the nearest centre; a cluster's token
    is the mean, at the place of its centre.

    Deviations: k is given, where PACT takes as many centres as the cutoff gives: here the cutoff is found by halving,
    and where no cutoff gives k, or the given one gives fewer, the tokens farthest from all centres are added; it is
    done before the language model on its tokens, where PACT compares keys in its fourth layer; PACT's pruning that
    comes before is not here.

    Args:
        metric: what distance is measured on, the tokens "x" or the vision tower's "keys".
        cutoff: to begin with, 0.21 in PACT; it grows until there are no more than k centres.
    """

    source = "PACT, arXiv 2504.08966, algorithm 2"
    licence = "MIT"
    place = "in the language model"
    family = "clustering"

    def __init__(self, metric: Metric = "x", *, cutoff: float | None = None):
        super().__init__()
        if metric not in get_args(Metric):
            raise ValueError(f"metric is {metric!r}, expected one of {', '.join(get_args(Metric))}")
        if cutoff is not None and not 0 <= cutoff <= 2:
            raise ValueError(f"cutoff is {cutoff!r}, expected a cosine distance in [0, 2]")
        self.metric: Metric = metric
        self.cutoff = cutoff
        if metric == "keys":
            self.needs = frozenset({"keys"})

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep one token for each of `k[g]` density peaks of every group."""
        groups = Groups.of(tokens)
        rows = tokens.signals.keys if self.metric == "keys" else tokens.x
        assert rows is not None
        distance, density = by_group(spread, groups.gather(rows), groups.valid, groups.valid)
        centre = peaks_up_to(distance, density, groups.valid, k, self.cutoff or 0.0)
        _, owner = by_group(nearest_centre, distance, farthest_added(distance, centre, groups.valid, k))
        owner = owner.masked_fill(~groups.valid, DROPPED)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))


def spread(
    x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"], counted: Bool[Tensor, "G M"]
) -> tuple[Float[Tensor, "G M M"], Float[Tensor, "G M"]]:
    """Cosine distance of all pairs, infinite to padding, and how densely the counted tokens lie around each."""
    distance = (1 - cosine(x)).clamp_(min=0)
    # rounding must not decide between the two of a pair, nor part a token from itself
    distance = torch.minimum(distance, distance.transpose(1, 2))
    distance.diagonal(dim1=1, dim2=2).fill_(0)
    wall = torch.where(valid, 0.0, torch.inf)
    distance.add_(wall[:, None]).add_(wall[..., None])
    return distance, (-(distance / 2).square_()).exp_().mul_(counted[:, None]).sum(-1)


def nearest_centre(
    distance: Float[Tensor, "G M M"], centre: Bool[Tensor, "G M"]
) -> tuple[Float[Tensor, "G M"], Int[Tensor, "G M"]]:
    """For every token the distance to the nearest centre, and which it is: itself for a centre."""
    nearest, owner = (distance + torch.where(centre, 0.0, torch.inf)[:, None]).min(-1)
    return nearest, torch.where(centre, torch.arange(centre.shape[1], device=centre.device), owner)


def peaks(
    distance: Float[Tensor, "G M M"],
    density: Float[Tensor, "G M"],
    valid: Bool[Tensor, "G M"],
    cutoff: Float[Tensor, " G"],
    most: int | None = None,
) -> Bool[Tensor, "G M"]:
    """Tokens that no denser centre is near to.

    Args:
        distance: symmetric, 0 to itself.
        density: of every token; of equal ones the earlier is denser.
        valid: which may be peaks.
        cutoff: largest distance that is near.
        most: how many to look for, the densest; all without.
    """
    rows = torch.arange(len(valid), device=valid.device)
    centre, left = torch.zeros_like(valid), valid
    for _ in range(valid.shape[1] if most is None else most):
        if not bool(left.any()):
            break
        densest = density.masked_fill(~left, -torch.inf).argmax(1)
        centre[rows, densest] |= left[rows, densest]
        left = left & (distance[rows, densest] > cutoff[:, None])
    return centre


def peaks_up_to(
    distance: Float[Tensor, "G M M"],
    density: Float[Tensor, "G M"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    cutoff: float,
) -> Bool[Tensor, "G M"]:
    """The peaks of the smallest cutoff, from the given one on, that leaves no more than `k[g]`, found by halving."""
    low = torch.full(k.shape, cutoff, dtype=distance.dtype, device=k.device)
    high = torch.full_like(low, 2.5)  # all is near, the densest token is the only peak
    best, middle = peaks(distance, density, valid, high), low
    done = torch.zeros_like(k, dtype=torch.bool)
    for _ in range(1 + _HALVINGS):
        found = peaks(distance, density, valid & ~done[:, None], middle, int(k.max()) + 1)
        fits = found.sum(1) <= k
        # a group that has its k stays as it is, whatever the others of the batch still need
        high = torch.where(fits & ~done, middle, high)
        low = torch.where(fits | done, low, middle)
        best = torch.where((fits & ~done)[:, None], found, best)
        done = (best.sum(1) == k) | (low == high)
        if bool(done.all()):
            break
        middle = (low + high) / 2
    return best


def farthest_added(
    distance: Float[Tensor, "G M M"], centre: Bool[Tensor, "G M"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]
) -> Bool[Tensor, "G M"]:
    """The centres, and the tokens farthest from all of them one after the other, until there are `k[g]`."""
    rows = torch.arange(len(k), device=k.device)
    centre, missing = centre.clone(), int((k - centre.sum(1)).max())
    if missing == 0:
        return centre
    nearest = distance.masked_fill(~centre[:, None], torch.inf).amin(-1)
    for _ in range(missing):
        lacks = centre.sum(1) < k
        farthest = nearest.masked_fill(centre | ~valid, -torch.inf).argmax(1)
        centre[rows, farthest] |= lacks
        nearest = torch.where(lacks[:, None], torch.minimum(nearest, distance[rows, farthest]), nearest)
    return centre
