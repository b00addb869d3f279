"""Importance from the token graph alone: tokens that are alike share it, rare ones keep theirs.

A kernel says how much two tokens of a group are the same, from 1 for copies to 0 for what is far apart. Its row sums
are the soft degree of a token in the similarity graph, the number of tokens that say what it says; 1 / degree is its
importance, so that the copies of a token share what it has alone.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROUNDING = 1e-6
"""Squared distance of directions below which rounding decides."""


def squared_distances(x: Float[Tensor, "G M D"]) -> Float[Tensor, "G M M"]:
    """Squared Euclidean distance of every pair of a group, 0 on the diagonal and the same both ways."""
    product = x @ x.transpose(1, 2)
    length = product.diagonal(dim1=1, dim2=2)
    squared = (length[:, :, None] + length[:, None] - product - product.transpose(1, 2)).clamp(min=0)
    return squared.diagonal_scatter(torch.zeros_like(length), dim1=1, dim2=2)


def kernel(
    squared: Float[Tensor, "G M M"], valid: Bool[Tensor, "G M"], weight: Float[Tensor, "G M"]
) -> Float[Tensor, "G M M"]:
    """How much two tokens are the same: 1 for copies, falling to 0 around half a deviation below the mean distance.

    `sigmoid((m - s / 2 - d_ij) / (0.15 s))` of the squared distance d, over its value for copies, where m and s are the
    mean and the standard deviation of d between two tokens of the group that are drawn with odds of `weight`. So the
    threshold is the picture's own; how far below the mean and how steep was chosen on calibration scenes.

    Args:
        squared: distance of every pair.
        valid: False where padded.
        weight: of every token, not negative, 0 where padded.

    Returns:
        Values in [0, 1], 1 between any two where all tokens are copies, 0 for padding.
    """
    odds = (weight / weight.sum(1, keepdim=True))[:, None]
    middle = odds @ squared @ odds.transpose(1, 2)
    deviation = (odds @ (squared - middle).square() @ odds.transpose(1, 2)).sqrt()
    reach, slope = middle - deviation / 2 + ROUNDING, 0.15 * deviation + ROUNDING
    near = (torch.sigmoid((reach - squared) / slope) / torch.sigmoid(reach / slope)).clamp(max=1)
    return near * (valid[:, None] & valid[..., None])


def inverse_degree(squared: Float[Tensor, "G M M"], valid: Bool[Tensor, "G M"]) -> Float[Tensor, "G M"]:
    """`1 / sum_j k_ij` in (0, 1], 0 where padded.

    Moving or turning all tokens changes no distance, and scaling them none relative to the others. A token with n
    copies weighs `n / (n + r)` in all, where r is what else is near: never more than 1 however many they are, but not
    quite the same for every n. `balanced_degree` has that exactly.

    Args:
        squared: distance of every pair.
        valid: False where padded.
    """
    return valid / kernel(squared, valid, valid.to(squared.dtype)).sum(-1).clamp(min=ROUNDING)


def balanced_degree(
    squared: Float[Tensor, "G M M"], valid: Bool[Tensor, "G M"], *, rounds: int = 20
) -> Float[Tensor, "G M"]:
    """Weights towards `sum_j k_ij w_j = 1`: every token finds weight 1 around it, whoever holds it. 0 where padded.

    With W the sum of the weights of all copies of a token, the equations name W alone, and so does the kernel, whose
    moments are taken with odds of the weights: repeating a token n times gives its copies W / n each and changes
    nothing else. The solution is the weighting of a space, whose sum, its magnitude, counts what is effectively
    distinct (Leinster 2013). Rounds of `w <- w / sqrt(K w)` keep weights positive; they begin with exact copies counted
    once, so that what is said holds after any number of rounds.

    Args:
        squared: distance of every pair.
        valid: False where padded.
        rounds: of the iteration.
    """
    both = valid[:, None] & valid[..., None]
    weight = valid.to(squared.dtype) / ((squared <= ROUNDING) & both).sum(-1).clamp(min=1)
    near = kernel(squared, valid, weight)
    for _ in range(rounds):
        around = (near @ weight[..., None])[..., 0]
        weight = weight / around.clamp(min=ROUNDING).sqrt()
    return weight
