"""Inhibition of redundancy: neighbours that say the same share importance instead of adding it."""

import torch
from jaxtyping import Float
from torch import Tensor

from crtc.graph.neighbors import Neighbors


def inhibit(
    score: Float[Tensor, " N"],
    neighbors: Neighbors,
    gain: Float[Tensor, ""] | float,
    threshold: Float[Tensor, ""] | float,
) -> Float[Tensor, " N"]:
    """`s_i - gain * max_j relu(cos_ij - threshold)` over the neighbours j that score higher than i.

    Non-maximum suppression in one parallel pass over the edges: of copies that are neighbours of each other the best
    keeps its score, the others pay. Equal scores are told apart by order, so that of identical tokens one is spared for
    every neighbourhood.

    Args:
        score: of every token.
        neighbors: by likeness; edges of the grid would count as copies.
        gain: how much copies pay.
        threshold: cosine above which a token is a copy.
    """
    other = score[neighbors.index]
    itself = torch.arange(len(score), device=score.device)[:, None]
    above = (other > score[:, None]) | ((other == score[:, None]) & (neighbors.index < itself))
    excess = torch.relu(neighbors.likeness - threshold) * (above & neighbors.valid)
    return score - gain * excess.amax(1)


def redundancy(value: Float[Tensor, "N H"], neighbors: Neighbors) -> Float[Tensor, "N H"]:
    """Importance that lies on similar tokens: `sum_j relu(cos_ij) r_j`."""
    return (neighbors.likeness.clamp(min=0)[..., None] * value[neighbors.index] * neighbors.valid[..., None]).sum(1)
