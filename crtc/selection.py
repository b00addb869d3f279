"""Selectors: pure functions that choose, on whole padded batches of groups.

Every selector takes `valid [G, M]` and whole numbers `k [G]`, works on the groups side by side as `Groups` lays them
out, and returns the chosen ones as a mask [G, M] with exactly `k[g]` true entries per row. Ties go to the earlier token.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def top_k(score: Float[Tensor, "G M"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]) -> Bool[Tensor, "G M"]:
    """The `k[g]` highest scores of every group."""
    order = score.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.zeros_like(valid).scatter(1, order, rank < k[:, None])


def max_min(
    distance: Float[Tensor, "G M M"],
    first: Int[Tensor, " G"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    weight: Float[Tensor, "G M"] | None = None,
) -> Bool[Tensor, "G M"]:
    """Greedy max-min (farthest point) choice: next is the token with the largest `weight * distance` to the chosen.

    Args:
        distance: symmetric, non-negative.
        first: where every group starts.
        weight: importance in (0, inf); plain farthest point without.
    """
    rows = torch.arange(len(distance), device=distance.device)
    chosen = torch.zeros_like(valid)
    nearest = torch.full(valid.shape, torch.inf, dtype=distance.dtype, device=distance.device)
    current = first
    for step in range(int(k.max())):
        active = step < k
        chosen[rows, current] |= active
        nearest = torch.minimum(nearest, distance[rows, current])
        gain = nearest if weight is None else nearest * weight
        current = gain.masked_fill(chosen | ~valid, -torch.inf).argmax(1)
    return chosen
