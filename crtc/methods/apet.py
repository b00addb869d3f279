"""ApET, stage one: tokens that a few others cannot reconstruct (2602.19870)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.greedy import farthest_points, most_central
from crtc.merging import make_plan, mean, nearest_kept
from crtc.methods.method import Method
from crtc.selection import top_k
from crtc.tokens import Groups, Plan, Tokens


class ApET(Method):
    """Keeps the tokens that are approximated worst by a basis of farthest points, and the basis.

    W = (S S^T + 1e-5 I)^-1 S x_i for a basis S of `basis` tokens, e_i = |x_i - S^T W|, x encoder features. k - `basis`
    tokens of the largest errors stay and take in the dropped ones, each the mean with what is most similar to it; the
    basis stays as it is.

    Deviations: the basis stands at its own places, which the authors' code fills with it in the order of their errors;
    it begins with the token nearest to the mean, where the code draws one; with k no larger than `basis` the basis is
    all that stays, and takes in the rest; a token whose place the code gives to the basis is merged like the other
    dropped ones, where the code loses it, and the basis is merged into nothing else; merging is after the projector;
    stage two, inside the language model, is not here.

    Args:
        basis: tokens that approximate the rest.
    """

    source = "ApET, arXiv 2602.19870, stage one"
    licence = "MIT"
    place = "before the projector, in the language model"
    family = "diversity"
    needs = frozenset({"features"})

    def __init__(self, *, basis: int = 10):
        super().__init__()
        if basis < 1:
            raise ValueError(f"basis is {basis!r}, expected at least 1")
        self.basis = basis

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep the `k[g]` tokens of every group that are hardest to approximate."""
        groups = Groups.of(tokens)
        assert tokens.signals.features is not None
        x = groups.gather(tokens.signals.features).float()
        first = most_central(x, groups.valid)
        basis = farthest_points(x, first, groups.valid, k.clamp(max=self.basis))
        kept = top_k(reconstruction_error(x, basis).masked_fill(basis, torch.inf), groups.valid, k)
        hosts = torch.where((k <= self.basis)[:, None], basis, kept & ~basis)
        owner = nearest_kept(x, hosts, groups.valid)
        places = torch.arange(owner.shape[1], device=owner.device)
        owner = torch.where(basis, places, owner)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))


def reconstruction_error(x: Float[Tensor, "G M D"], basis: Bool[Tensor, "G M"]) -> Float[Tensor, "G M"]:
    """Distance of every token from its least-squares approximation by the basis, with a ridge of 1e-5."""
    order = basis.long().argsort(dim=1, descending=True, stable=True)[:, : int(basis.sum(1).max())]
    s = x.gather(1, order[..., None].expand(-1, -1, x.shape[-1])) * basis.gather(1, order)[..., None]
    ridge = 1e-5 * torch.eye(s.shape[1], device=x.device)
    w = torch.linalg.solve(s @ s.transpose(1, 2) + ridge, s @ x.transpose(1, 2))
    error: Tensor = torch.linalg.vector_norm(x - w.transpose(1, 2) @ s, dim=-1)
    return error
