"""Propagation of importance: tokens that support each other gain.

`r <- (1 - a) r0 + a W r`: personalised PageRank with weights W on the edges of the token graph, learned or not (APPNP
on scores, Gasteiger et al., 2019). Two forms, equal up to rounding: a gather over fixed-degree neighbour lists, and a
PyG `MessagePassing` layer for arbitrary edges.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch_geometric.nn import MessagePassing

from crtc.graph.neighbors import Neighbors


def propagate(
    seed: Float[Tensor, "N H"],
    neighbors: Neighbors,
    weight: Float[Tensor, "N K H"],
    share: Float[Tensor, " H"] | float,
    steps: int,
) -> Float[Tensor, "N H"]:
    """`steps` rounds of `r <- (1 - share) seed + share * sum_j weight_j r_j` by gather.

    Args:
        seed: relevance of every token on every channel.
        neighbors: who sends to whom.
        weight: of every edge on every channel, 0 where masked.
        share: how much comes from the neighbours, in [0, 1], one value or one per channel.
        steps: rounds; 0 gives the seed back.

    Raises:
        ValueError: if steps is negative.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}, expected at least 0")
    value = seed
    for _ in range(steps):
        value = (1 - share) * seed + share * (weight * value[neighbors.index]).sum(1)
    return value


class Propagation(MessagePassing):  # type: ignore[misc]  # PyG ships no types
    """The same as a PyG layer on `edge_index` with one weight per edge and channel.

    Args:
        steps: rounds.
    """

    def __init__(self, steps: int):
        super().__init__(aggr="add")
        if steps < 0:
            raise ValueError(f"steps is {steps}, expected at least 0")
        self.steps = steps

    def forward(
        self,
        seed: Float[Tensor, "N H"],
        edge_index: Int[Tensor, "2 E"],
        weight: Float[Tensor, "E H"],
        share: Float[Tensor, " H"] | float,
    ) -> Float[Tensor, "N H"]:
        """Propagate `seed` along the edges."""
        value = seed
        for _ in range(self.steps):
            value = (1 - share) * seed + share * self.propagate(edge_index, x=value, weight=weight)
        return value

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        """What an edge carries."""
        return weight * x_j


def edge_softmax(logit: Float[Tensor, "N K H"], neighbors: Neighbors) -> Float[Tensor, "N K H"]:
    """Weights of the edges into a token: softmax over its neighbours, all zero for a token without any."""
    masked = logit.masked_fill(~neighbors.valid[..., None], -torch.inf)
    top = masked.amax(1, keepdim=True).clamp(min=torch.finfo(logit.dtype).min)
    raised = (masked - top).exp()
    return raised / raised.sum(1, keepdim=True).clamp(min=torch.finfo(logit.dtype).tiny)
