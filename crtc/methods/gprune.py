"""G-Prune: importance that flows over the graph of similar tokens (2501.02268)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crtc.batching import by_group
from crtc.methods.method import ScoreMethod
from crtc.similarity import cosine
from crtc.tokens import Groups, Tokens


class GPrune(ScoreMethod):
    """Keeps the tokens that score highest after their norms have flowed over the similarity graph.

    A_ij = cos(x_i, x_j) where that is at least the threshold, P = softmax of A / temperature over each row's edges,
    score = (w P^steps) / degree with w_i = |x_i|. Deviations: in float32; dropped tokens give their mass to the kept
    token most like them.

    Args:
        threshold: cosine from which two tokens are neighbours.
        temperature: of the softmax over neighbours.
        steps: of the flow.
    """

    source = "G-Prune, arXiv 2501.02268"
    licence = "none given"
    family = "graph"

    def __init__(self, *, threshold: float = 0.5, temperature: float = 0.03, steps: int = 5):
        super().__init__()
        if not -1 <= threshold < 1:
            raise ValueError(f"threshold is {threshold!r}, expected a cosine in [-1, 1)")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature!r}, expected more than 0")
        if steps < 0:
            raise ValueError(f"steps is {steps!r}, expected 0 or more")
        self.threshold = threshold
        self.temperature = temperature
        self.steps = steps

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Norms after the flow, divided by degrees."""
        groups = Groups.of(tokens)
        (flown,) = by_group(self.flown, groups.gather(tokens.x), groups.valid)
        score = torch.zeros(len(tokens), device=flown.device)
        score[tokens.candidates] = flown[groups.valid]
        return score

    def flown(self, x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"]) -> tuple[Float[Tensor, "G M"]]:
        """The score of every token of its group."""
        x = x.float()
        likeness = cosine(x)
        # A token always is its own neighbour, also where its features are zero or it is padding.
        own = torch.eye(likeness.shape[1], dtype=torch.bool, device=x.device)
        edge = (likeness >= self.threshold) & valid[:, None] | own
        walk = torch.where(edge, likeness / self.temperature, -torch.inf).softmax(-1)
        weight = x.norm(dim=-1)[:, None]
        for _ in range(self.steps):
            weight = weight @ walk
        return (weight[:, 0] / edge.sum(-1),)
