"""SCOPE: what a token adds to the coverage of all, times its saliency (2510.24214)."""

import torch
from jaxtyping import Int
from torch import Tensor

from crtc.batching import by_group
from crtc.greedy import coverage
from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens


class Scope(Method):
    """Greedy argmax_v a_v^alpha * sum_u max(cos(u, v) - C(u), 0) over encoder features.

    C(u) is the likeness of u to the most similar kept token, a the [CLS] attention. Deviation: dropped tokens give
    their mass to the kept token most like them.

    Args:
        alpha: how much saliency counts; 0 is coverage alone.
    """

    source = "SCOPE, arXiv 2510.24214"
    licence = "Apache-2.0"
    place = "before the projector"
    family = "diversity"
    needs = frozenset({"cls_attention", "features"})

    def __init__(self, *, alpha: float = 1.0):
        super().__init__()
        if alpha < 0:
            raise ValueError(f"alpha is {alpha!r}, expected 0 or more")
        self.alpha = alpha

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep the `k[g]` salient tokens of every group that cover it."""
        groups = Groups.of(tokens)
        attention, features = tokens.signals.cls_attention, tokens.signals.features
        assert attention is not None and features is not None
        weight = groups.gather(attention.float()).clamp(min=torch.finfo(torch.float32).tiny) ** self.alpha
        (covered,) = by_group(lambda rows: (cosine(rows).clamp_(min=0),), groups.gather(features))
        return give_mass(tokens, groups, coverage(covered, groups.valid, k, weight))
