"""Random choice, the control that every method must beat."""

import torch
from jaxtyping import Float
from torch import Tensor

from crtc.methods.method import ScoreMethod
from crtc.tokens import Tokens


class Random(ScoreMethod):
    """Keeps tokens at random, the same ones for the same seed and group size.

    Args:
        seed: of the choice.
    """

    source = "control"
    family = "control"
    uses_order = True

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = seed

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Uniform noise; a group's noise depends on the seed alone, not on its neighbours in the batch."""
        sizes = tokens.group_sizes
        place = torch.arange(int(sizes.sum()), device=sizes.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        noise = torch.rand(int(sizes.max()), generator=torch.Generator().manual_seed(self.seed)).to(sizes.device)
        score = torch.zeros(len(tokens), device=tokens.x.device)
        score[tokens.candidates] = noise[place]
        return score
