"""Likeness of the tokens of a group with each other."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def cosine(x: Float[Tensor, "G M D"]) -> Float[Tensor, "G M M"]:
    """Cosine of every pair in float32; 0 where one of the two is zero, as padding is."""
    unit = F.normalize(x.float(), dim=-1)
    return unit @ unit.transpose(1, 2)


def nearest_neighbors(x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"], num: int) -> Float[Tensor, "G M M"]:
    """Symmetric adjacency: the cosine where it is positive and one of the two is among the other's `num` nearest."""
    likeness = cosine(x)
    own = torch.eye(likeness.shape[1], dtype=torch.bool, device=x.device)
    possible = valid[:, None] & valid[..., None] & ~own
    order = likeness.masked_fill(~possible, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    near = torch.zeros_like(possible).scatter(-1, order[..., :num], True) & possible
    return likeness.clamp(min=0) * (near | near.transpose(1, 2))
