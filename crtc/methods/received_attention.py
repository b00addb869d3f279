"""Attention received from all tokens, the saliency of towers without [CLS] (2412.04467)."""

import torch
from jaxtyping import Float
from torch import Tensor

from crtc.methods.method import ScoreMethod
from crtc.tokens import Tokens


class ReceivedAttention(ScoreMethod):
    """Keeps the tokens that all queries of their image attend to most, mean over heads and queries.

    VisionZip's code scores so where the tower has no [CLS]. The layer is the one that feeds the projector. Deviations:
    nothing is merged; dropped tokens give their mass to the kept token most like them.
    """

    source = "VisionZip for towers without [CLS], arXiv 2412.04467"
    licence = "Apache-2.0"
    place = "before the projector"
    family = "saliency"
    needs = frozenset({"received_attention"})

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """The captured attention."""
        attention = tokens.signals.received_attention
        assert attention is not None
        return attention.to(torch.float32)
