"""Spectral clustering: k-means on the leading eigenvectors of the token graph (Ng, Jordan and Weiss, 2001)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.clustering import k_means
from crtc.merging import central_members, make_plan, mean
from crtc.methods.method import Method
from crtc.similarity import nearest_neighbors
from crtc.tokens import Groups, Plan, Tokens


class SpectralClustering(Method):
    """Cuts the nearest-neighbor graph into k parts of few edges between them and keeps the mean of each.

    Edges join every token with its nearest neighbors by cosine, both ways. The rows of the k leading eigenvectors of
    D^-1/2 A D^-1/2, scaled to length one, are clustered by k-means. A mean stands at the place of its part's member
    that is nearest to it in direction.

    Args:
        neighbors: of every token.
        seed: of the start of k-means.
    """

    source = "spectral clustering, Ng, Jordan and Weiss 2001"
    family = "clustering"
    uses_order = True

    def __init__(self, *, neighbors: int = 8, seed: int = 0):
        super().__init__()
        if neighbors < 1:
            raise ValueError(f"neighbors is {neighbors!r}, expected at least 1")
        self.neighbors = neighbors
        self.seed = seed

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep one token for each of `k[g]` parts of every group."""
        groups = Groups.of(tokens)
        x = groups.gather(tokens.x)
        place = spectral_embedding(nearest_neighbors(x, groups.valid, self.neighbors), groups.valid, k)
        label = k_means(place, groups.valid, k, seed=self.seed)
        owner = central_members(x, label.clamp(min=0), groups.valid)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))


def spectral_embedding(
    edges: Float[Tensor, "G M M"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]
) -> Float[Tensor, "G M K"]:
    """Rows of the `k[g]` leading eigenvectors of the normalised adjacency, of length one; 0 beyond and where padded."""
    # In float64: the gap behind the last eigenvalue may be small.
    degree = edges.double().sum(-1)
    scale = torch.where(degree > 0, degree.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 0)
    walk = scale[:, :, None] * edges.double() * scale[:, None]
    # A token without edges is a part by itself, padding comes after all eigenvalues of a graph.
    alone = torch.where(valid, (degree == 0).double(), -2.0)
    vectors = torch.linalg.eigh(walk + torch.diag_embed(alone)).eigenvectors.flip(-1)[..., : int(k.max())]
    leading = torch.arange(vectors.shape[-1], device=k.device) < k[:, None]
    return F.normalize(vectors * leading[:, None] * valid[..., None], dim=-1).float()
