"""Likeness to the question, the plainest question-aware saliency (after TRIM, 2409.10994)."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from crtc.methods.method import ScoreMethod
from crtc.relevance import Reduce, text_relevance
from crtc.tokens import Groups, Tokens


class CrossModalSimilarity(ScoreMethod):
    """Keeps the tokens most like the text of their sequence, s_i = sign * max_t cos(x_i, t).

    Deviations from TRIM, s_i = softmax_i(-<v_i, t>) with CLIP's joint embedding and one text vector: both sides are in
    the language model's embedding space, the product is normalised, the text tokens are taken one by one, and the sign
    is positive by default, because that of CLIP comes from its inverted patch similarity. Softmax keeps the order, so
    it is left out; the one token that TRIM adds, the mean of the dropped, is not here. A sequence without text keeps
    its first tokens.

    Args:
        reduce: over the text tokens, "max" or "mean".
        sign: 1 keeps the most similar tokens, -1 the least.
    """

    source = "TRIM, arXiv 2409.10994, equation of the token score"
    licence = "Apache-2.0"
    place = "before the projector"
    family = "saliency"
    needs = frozenset({"text"})
    question_aware = True

    def __init__(self, reduce: Reduce = "max", *, sign: Literal[-1, 1] = 1):
        super().__init__()
        if reduce not in get_args(Reduce):
            raise ValueError(f"reduce is {reduce!r}, expected one of {', '.join(get_args(Reduce))}")
        if sign not in (-1, 1):
            raise ValueError(f"sign is {sign!r}, expected 1 or -1")
        self.reduce: Reduce = reduce
        self.sign = sign

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Signed cosine with the text."""
        groups = Groups.of(tokens)
        score = torch.zeros(len(tokens), device=tokens.x.device)
        score[tokens.candidates] = text_relevance(tokens, groups, self.reduce)[groups.valid]
        return self.sign * score
