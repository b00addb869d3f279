"""Attention of the [CLS] token, the plainest saliency (FasterVLM, 2412.01818v1)."""

import torch
from jaxtyping import Float
from torch import Tensor

from crtc.methods.method import ScoreMethod
from crtc.tokens import Tokens


class ClsAttention(ScoreMethod):
    """Keeps the tokens that the vision tower's [CLS] query attends to most.

    The attention is the mean over heads in the layer that feeds the projector. Deviations: dropped tokens give their
    mass to the kept token most like them, which changes nothing unless mass is asked for.
    """

    source = "FasterVLM, arXiv 2412.01818v1"
    licence = "Apache-2.0"
    family = "saliency"
    needs = frozenset({"cls_attention"})

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """The captured attention."""
        attention = tokens.signals.cls_attention
        assert attention is not None
        return attention.to(torch.float32)
