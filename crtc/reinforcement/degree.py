"""Importance from the token graph alone: tokens that are alike share it, rare ones keep theirs.

A kernel says how much two tokens of a group are the same, from 1 for copies to 0 for what is far apart. Its row sums
are the soft degree of a token in the similarity graph, the number of tokens that say what it says; 1 / degree is its
importance, so that the copies of a token share what it has alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROUNDING = 1e-6
"""Squared distance below which rounding decides, for vectors of length one."""


@dataclass(frozen=True)
class Kernel:
    """How much two tokens are the same: 1 for copies, falling to 0 around half a deviation below the mean distance.

    `sigmoid((m - s / 2 - d) / (0.15 s))` of the squared distance d, over its value for copies, where m and s are the
    mean and the standard deviation of d between two tokens of a group. So the threshold is the picture's own; how far
    below the mean and how steep was chosen on calibration scenes.

    Args:
        reach: squared distance at which the sigmoid is one half.
        slope: of the sigmoid.
    """

    reach: Float[Tensor, "G 1 1"]
    slope: Float[Tensor, "G 1 1"]

    @classmethod
    def of(cls, x: Float[Tensor, "G M D"], weight: Float[Tensor, "G M"]) -> "Kernel":
        """The kernel of tokens drawn with odds of `weight`, which is 0 where padded.

        The moments of all pairs are those of the tokens: with mean 0 and `C = E[x x']`, the mean of d is `2 E|x|^2` and
        that of its square `2 E|x|^4 + 2 (E|x|^2)^2 + 4 |C|^2`. C is of channels or, in few tokens of many channels, its
        norm is that of their products, so this takes no more than the smaller of both squares.
        """
        odds = (weight / weight.sum(1, keepdim=True))[:, None]
        x = x - odds @ x
        length = x.square().sum(-1, keepdim=True)
        mean, fourth = odds @ length, odds @ length.square()
        part = x * odds.transpose(1, 2).sqrt()
        turned = part.transpose(1, 2)
        product = part @ turned if x.shape[1] < x.shape[2] else turned @ part
        second = 2 * fourth + 2 * mean.square() + 4 * product.square().sum((1, 2), keepdim=True)
        deviation = (second - (2 * mean).square()).clamp(min=0).sqrt()
        reach, slope = 2 * mean - deviation / 2 + ROUNDING, 0.15 * deviation + ROUNDING
        return cls(reach.to(weight.dtype), slope.to(weight.dtype))

    def __call__(self, squared: Float[Tensor, "G P Q"]) -> Float[Tensor, "G P Q"]:
        """Values in [0, 1] of squared distances."""
        most = torch.sigmoid(self.reach / self.slope)
        return (torch.sigmoid((self.reach - squared) / self.slope) / most).clamp(max=1)


def squared_distances(x: Float[Tensor, "G M D"], rows: slice = slice(None)) -> Float[Tensor, "G P M"]:
    """Squared Euclidean distance of some tokens of every group to all of it, 0 where rounding would decide."""
    length = x.square().sum(-1)
    both = length[:, rows, None] + length[:, None]
    squared = both - 2 * x[:, rows] @ x.transpose(1, 2)
    return squared.masked_fill(squared <= ROUNDING * both / 2, 0)


def inverse_degree(x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"], *, chunk: int = 1024) -> Float[Tensor, "G M"]:
    """`1 / sum_j k_ij` in (0, 1], 0 where padded.

    Moving or turning all tokens changes no distance, and scaling them none relative to the others. A token with n
    copies weighs `n / (n + r)` in all, where r is what else is near: never more than 1 however many they are, but not
    quite the same for every n. `balanced_degree` has that exactly.

    Args:
        x: tokens.
        valid: False where padded.
        chunk: rows of the kernel at once: memory is `G * (chunk * M + D * D)`, never the square of a long group.
    """
    near = Kernel.of(x, valid.to(x.dtype))
    degree = torch.zeros_like(x[..., 0])
    for start in range(0, x.shape[1], chunk):
        rows = slice(start, start + chunk)
        degree[:, rows] = (near(squared_distances(x, rows)) * valid[:, None]).sum(-1)
    return valid / degree.clamp(min=ROUNDING)


def balanced_degree(x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"], *, rounds: int = 20) -> Float[Tensor, "G M"]:
    """Weights towards `sum_j k_ij w_j = 1`: every token finds weight 1 around it, whoever holds it. 0 where padded.

    With W the sum of the weights of all copies of a token, the equations name W alone, and so does the kernel, whose
    moments are taken with odds of the weights: repeating a token n times gives its copies W / n each and changes
    nothing else. The solution is the weighting of a space, whose sum, its magnitude, counts what is effectively
    distinct (Leinster 2013). Rounds of `w <- w / sqrt(K w)` keep weights positive; they begin with exact copies counted
    once, so that what is said holds after any number of rounds.

    Args:
        x: tokens.
        valid: False where padded.
        rounds: of the iteration.
    """
    both = valid[:, None] & valid[..., None]
    squared = squared_distances(x)
    weight = valid.to(x.dtype) / ((squared == 0) & both).sum(-1).clamp(min=1)
    near = Kernel.of(x, weight)(squared) * both
    for _ in range(rounds):
        around = (near @ weight[..., None])[..., 0]
        weight = weight / around.clamp(min=ROUNDING).sqrt()
    return weight
