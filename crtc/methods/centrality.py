"""Centrality in the graph of similar tokens, the plainest graph scores."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crtc.methods.method import ScoreMethod
from crtc.similarity import cosine
from crtc.tokens import Groups, Tokens


class DegreeCentrality(ScoreMethod):
    """Keeps the tokens that are like most others: sum_j max(cos(x_i, x_j), 0).

    Args:
        sign: 1 keeps the central tokens, -1 the peripheral ones.
    """

    source = "degree centrality"
    family = "graph"

    def __init__(self, *, sign: int = 1):
        super().__init__()
        self.sign = _checked(sign)

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Signed weighted degree."""
        groups = Groups.of(tokens)
        return self.sign * _flat(tokens, groups.valid, _adjacency(tokens, groups).sum(-1))


class EigenvectorCentrality(ScoreMethod):
    """Keeps the tokens that are like central tokens: the leading eigenvector of A_ij = max(cos(x_i, x_j), 0).

    By power iteration from equal weights; equals `networkx.eigenvector_centrality_numpy` where it converged.

    Args:
        sign: 1 keeps the central tokens, -1 the peripheral ones.
        iterations: of the power method.
    """

    source = "eigenvector centrality, Bonacich 1972"
    family = "graph"

    def __init__(self, *, sign: int = 1, iterations: int = 30):
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations is {iterations!r}, expected at least 1")
        self.sign = _checked(sign)
        self.iterations = iterations

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Signed component of the leading eigenvector."""
        groups = Groups.of(tokens)
        adjacency = _adjacency(tokens, groups).double()
        weight = groups.valid.double()[..., None]
        for _ in range(self.iterations):
            weight = adjacency @ weight
            weight = weight / weight.norm(dim=1, keepdim=True)
        return self.sign * _flat(tokens, groups.valid, weight[..., 0].float())


def _checked(sign: int) -> int:
    if sign not in (-1, 1):
        raise ValueError(f"sign is {sign!r}, expected 1 or -1")
    return sign


def _adjacency(tokens: Tokens, groups: Groups) -> Float[Tensor, "G M M"]:
    """Similar tokens, every one also with itself."""
    likeness = cosine(groups.gather(tokens.x)).clamp(min=0)
    # Two tokens are central alike; rounding must not decide between them.
    likeness = torch.maximum(likeness, likeness.transpose(1, 2))
    own = torch.eye(groups.valid.shape[1], device=tokens.x.device)
    return torch.where(own > 0, own * groups.valid[:, None], likeness)


def _flat(tokens: Tokens, valid: Bool[Tensor, "G M"], score: Float[Tensor, "G M"]) -> Float[Tensor, " N"]:
    flat = torch.zeros(len(tokens), device=score.device)
    flat[tokens.candidates] = score[valid]
    return flat
