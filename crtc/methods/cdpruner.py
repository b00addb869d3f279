"""CDPruner: a determinantal point process conditioned on the question (2506.10967)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crtc.batching import by_group
from crtc.greedy import dpp
from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.relevance import text_relevance
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens


class CDPruner(Method):
    """Greedy MAP of the DPP with kernel diag(r) L diag(r), L_ij = cos(x_i, x_j), r relevance to the question.

    r is scaled to (0, 1]: (r - min + 1e-6) / (max - min). Deviations: relevance is the mean cosine to the text in
    the language model's embedding space, because stock LLaVA has no CLIP text tower (with CLIP the code takes the
    *negative* cosine, sign=-1); it is scaled per image, where the code scales over the batch, so that an image's
    tokens do not depend on others; where all tokens are equally relevant the choice is by diversity alone. Dropped
    tokens give their mass to the kept token most like them.

    Args:
        sign: of the cosine with the text.
    """

    source = "CDPruner, arXiv 2506.10967, equations of the conditional kernel"
    licence = "Apache-2.0"
    family = "diversity"
    needs = frozenset({"text"})
    question_aware = True

    def __init__(self, *, sign: Literal[-1, 1] = 1):
        super().__init__()
        if sign not in (-1, 1):
            raise ValueError(f"sign is {sign!r}, expected 1 or -1")
        self.sign = sign

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep the `k[g]` tokens of every group that are relevant and unlike each other."""
        groups = Groups.of(tokens)
        relevance = self.sign * text_relevance(tokens, groups, "mean")
        low = relevance.masked_fill(~groups.valid, torch.inf).amin(1, keepdim=True)
        high = relevance.masked_fill(~groups.valid, -torch.inf).amax(1, keepdim=True)
        scaled = torch.where(high - low > 1e-6, (relevance - low + 1e-6) / (high - low).clamp(min=1e-6), 1.0)
        (kernel,) = by_group(_kernel, groups.gather(tokens.x), scaled)
        return give_mass(tokens, groups, dpp(kernel, groups.valid, k))


def _kernel(x: Float[Tensor, "G M D"], quality: Float[Tensor, "G M"]) -> tuple[Float[Tensor, "G M M"]]:
    return ((quality[:, :, None] * cosine(x)).mul_(quality[:, None]),)
