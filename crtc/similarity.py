"""Likeness of the tokens of a group with each other."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def cosine(x: Float[Tensor, "G M D"]) -> Float[Tensor, "G M M"]:
    """Cosine of every pair in float32; 0 where one of the two is zero, as padding is."""
    unit = F.normalize(x.float(), dim=-1)
    return unit @ unit.transpose(1, 2)
