"""DBDPC, the clustering of PACT: density peaks that are no nearer to each other than a cutoff (2504.08966)."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
        valid = groups.valid
        place = torch.arange(valid.shape[1], device=k.device)
        distance = (1 - cosine(groups.gather(rows))).clamp(min=0)
        # rounding must not decide between the two of a pair, nor part a token from itself
        distance = torch.minimum(distance, distance.transpose(1, 2)).masked_fill(place == place[:, None], 0)
        distance = distance.masked_fill(~(valid[:, None] & valid[..., None]), torch.inf)
        rho = (-(distance / 2).square()).exp().sum(-1)
        denser = (rho[:, None] > rho[..., None]) | ((rho[:, None] == rho[..., None]) & (place < place[:, None]))
        centre = farthest_added(distance, peaks_up_to(distance, denser, valid, k, self.cutoff or 0.0), valid, k)
        owner = distance.masked_fill(~centre[:, None], torch.inf).argmin(-1)
        owner = torch.where(centre, place, owner).masked_fill(~valid, DROPPED)
        return make_plan(tokens, groups, owner, mean(owner, valid))


def peaks(
    distance: Float[Tensor, "G M M"],
    denser: Bool[Tensor, "G M M"],
    valid: Bool[Tensor, "G M"],
    cutoff: Float[Tensor, " G"],
) -> Bool[Tensor, "G M"]:
    """Tokens that no denser centre is near to.

    Args:
        denser: whether column j is denser than row i.
        cutoff: largest distance that is near.
    """
    near = distance <= cutoff[:, None, None]
    centre, left = torch.zeros_like(valid), valid
    while bool(left.any()):
        # those without a denser one near among the rest are centres in any case: the densest of all is one of them
        fresh = left & ~(near & denser & left[:, None]).any(-1)
        centre = centre | fresh
        left = left & ~(near & fresh[:, None]).any(-1)
    return centre


def peaks_up_to(
    distance: Float[Tensor, "G M M"],
    denser: Bool[Tensor, "G M M"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    cutoff: float,
) -> Bool[Tensor, "G M"]:
    """The peaks of the smallest cutoff, from the given one on, that leaves no more than `k[g]`, found by halving."""
    low = torch.full(k.shape, cutoff, dtype=distance.dtype, device=k.device)
    high = torch.full_like(low, 2.5)  # all is near, the densest token is the only peak
    best, middle = peaks(distance, denser, valid, high), low
    done = torch.zeros_like(k, dtype=torch.bool)
    for _ in range(1 + _HALVINGS):
        found = peaks(distance, denser, valid, middle)
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
    centre = centre.clone()
    nearest = distance.masked_fill(~centre[:, None], torch.inf).amin(-1)
    for _ in range(int((k - centre.sum(1)).max())):
        lacks = centre.sum(1) < k
        farthest = nearest.masked_fill(centre | ~valid, -torch.inf).argmax(1)
        centre[rows, farthest] |= lacks
        nearest = torch.where(lacks[:, None], torch.minimum(nearest, distance[rows, farthest]), nearest)
    return centre
