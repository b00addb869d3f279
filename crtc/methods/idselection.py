"""ID-Selection: importance that fades around every token that is kept (2604.05601)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crtc.batching import by_group
from crtc.greedy import suppression
from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens


class IDSelection(Method):
    """Keeps the token of highest score and lowers the scores of those like it, again and again.

    S is the [CLS] attention scaled to [0, 1]; with token i kept, S_j <- S_j - exp(-gamma * d_ij^2) * S_i, d the cosine
    distance.

    Deviations: no code of the authors was public when this was written and the paper's text could not be read in full,
    so the rule is that of others' code which names the paper's equations, with the paper's gamma; that code sets
    negative scores to zero, which leaves the order of the last choices open, where here they stay and suppress nothing;
    importance is that of the vision tower, where the paper also takes attention within the language model; dropped
    tokens give their mass to the kept token most like them.

    Args:
        gamma: how narrow suppression is; 0 suppresses all alike.
    """

    source = "ID-Selection, arXiv 2604.05601"
    family = "diversity"
    needs = frozenset({"cls_attention"})

    def __init__(self, *, gamma: float = 20.0):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma is {gamma!r}, expected 0 or more")
        self.gamma = gamma

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep the `k[g]` tokens of every group that are important and unlike each other."""
        groups = Groups.of(tokens)
        assert tokens.signals.cls_attention is not None
        attention = groups.gather(tokens.signals.cls_attention.float())
        low = attention.masked_fill(~groups.valid, torch.inf).amin(1, keepdim=True)
        high = attention.masked_fill(~groups.valid, -torch.inf).amax(1, keepdim=True)
        scaled = (attention - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        (weight,) = by_group(self.weight, groups.gather(tokens.x))
        return give_mass(tokens, groups, suppression(scaled, weight, groups.valid, k))

    def weight(self, x: Float[Tensor, "G M D"]) -> tuple[Float[Tensor, "G M M"]]:
        """How much of one score is taken off another, by their cosine distance."""
        distance = (1 - cosine(x)).clamp_(min=0)
        return ((-self.gamma * distance.square_()).exp_(),)
