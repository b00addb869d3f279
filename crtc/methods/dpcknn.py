"""DPC-kNN: density peaks among the nearest neighbours, and one token per peak (2204.08680)."""

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.batching import by_group
from crtc.merging import make_plan, mean
from crtc.methods.method import Method
from crtc.selection import top_k
from crtc.tokens import DROPPED, Groups, Plan, Tokens


class DpcKnn(Method):
    """Clusters around density peaks: tokens that are dense and far from any denser one.

    rho_i = exp(-mean of d_ij^2 over the nearest tokens, itself among them), delta_i the distance to the nearest token
    of higher rho (the largest distance of the image, for the densest), centres the k largest rho_i * delta_i, each
    token joins the nearest centre, distances divided by sqrt(channels). A cluster's token is the mean, at the place of
    its centre. Deviation: equal densities are told apart by order, where the code adds noise of 1e-6.

    Args:
        neighbors: nearest tokens for the density: 5 in TCFormer; None takes k, as SparseVLM does.
    """

    source = "DPC-kNN, as in TCFormer, arXiv 2204.08680, and SparseVLM, arXiv 2410.04417"
    licence = "Apache-2.0"
    place = "in the encoder"
    family = "clustering"

    def __init__(self, *, neighbors: int | None = 5):
        super().__init__()
        if neighbors is not None and neighbors < 1:
            raise ValueError(f"neighbors is {neighbors!r}, expected at least 1")
        self.neighbors = neighbors

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep one token for each of `k[g]` density peaks of every group."""
        groups = Groups.of(tokens)
        owner = density_peaks(groups.gather(tokens.x), groups.valid, k, self.neighbors)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))


def density_peaks(
    x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"], neighbors: int | None
) -> Int[Tensor, "G M"]:
    """Owner map: the tokens of `k[g]` density peaks own themselves, every other joins the nearest of them."""
    (owner,) = by_group(partial(_density_peaks, neighbors=neighbors), x.float(), valid, k)
    return owner


def _density_peaks(
    x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"], neighbors: int | None
) -> tuple[Int[Tensor, "G M"]]:
    distance = torch.cdist(x, x).mul_(x.shape[-1] ** -0.5)
    if not bool(valid.all()):
        distance.masked_fill_(~valid[:, None], torch.inf)
    wanted = k if neighbors is None else torch.full_like(k, neighbors)
    near = distance.topk(min(int(wanted.max()), distance.shape[-1]), largest=False).values
    real = near.isfinite() & (torch.arange(near.shape[-1], device=near.device) < wanted[:, None, None])
    rho = (-(near.masked_fill(~real, 0).square().sum(-1) / real.sum(-1))).exp()
    rank = rho.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # of equal densities the earlier is denser
    to_denser = torch.where(rank[:, None] < rank[..., None], distance, torch.inf).amin(-1)
    seen = distance if bool(valid.all()) else distance.masked_fill(~valid[:, None] | ~valid[..., None], -torch.inf)
    delta = torch.where(to_denser.isfinite(), to_denser, seen.amax((1, 2))[:, None])
    centre = top_k(rho * delta, valid, k)
    anchors = centre.long().argsort(dim=1, descending=True, stable=True)[:, : int(k.max())]
    away = distance.gather(2, anchors[:, None].expand(-1, distance.shape[1], -1))
    away.masked_fill_(~centre.gather(1, anchors)[:, None], torch.inf)
    owner = torch.where(centre, torch.arange(rho.shape[1], device=rho.device), anchors.gather(1, away.argmin(-1)))
    return (owner.masked_fill(~valid, DROPPED),)
