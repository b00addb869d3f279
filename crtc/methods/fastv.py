"""FastV: what the last token attends to in the second layer stays (2403.06764)."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from crtc.methods.inside import InsideMethod, attention_paid, last_of
from crtc.methods.method import ScoreMethod
from crtc.tokens import Tokens

Asking = Literal["last", "all"]


class FastV(InsideMethod, ScoreMethod):
    """Keeps the tokens that get most attention in the layer before layer K, mean over heads.

    The authors' code reads the attention of the last token alone, the paper's formula that of all tokens; the choice is
    made once, at the prompt, as their version with a cache does. Positions stay as they were. K is 2 of 32 layers.

    Args:
        layers: K; 2 of 32 without.
        matched: whether amounts are the mean over all layers, else what is left from layer K on.
        asking: whose attention counts, of the "last" token or of "all" of them.
    """

    source = "FastV, arXiv 2403.06764"
    licence = "none given"
    family = "saliency"
    needs = frozenset({"layer_queries", "layer_keys"})
    question_aware = True
    published_layers = (2,)

    def __init__(self, *, layers: Sequence[int] | None = None, matched: bool = True, asking: Asking = "last"):
        super().__init__(layers=layers, matched=matched)
        if asking not in get_args(Asking):
            raise ValueError(f"asking is {asking!r}, expected one of {', '.join(get_args(Asking))}")
        self.asking: Asking = asking
        self.uses_order = asking == "all"  # tokens are seen by those behind them only

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Attention that the asking tokens pay."""
        everyone = torch.ones_like(tokens.candidates)
        return attention_paid(tokens, last_of(tokens) if self.asking == "last" else everyone)
