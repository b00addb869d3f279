"""Maximal marginal relevance: saliency minus likeness to what is kept (Carbonell and Goldstein, 1998)."""

import torch
from jaxtyping import Int
from torch import Tensor

from crtc.greedy import marginal_relevance
from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens


class MaximalMarginalRelevance(Method):
    """Greedy argmax_i trade * a_i - (1 - trade) * max_{s kept} cos(x_i, x_s), a [CLS] attention scaled to [0, 1].

    IDPruner re-ranks importance in this way. Deviations: importance is attention, where IDPruner trains a selector for
    it; dropped tokens give their mass to the kept token most like them.

    Args:
        trade: 1 is saliency alone, 0 diversity alone.
    """

    source = "MMR, Carbonell and Goldstein 1998; for visual tokens as in IDPruner"
    licence = "none given"
    family = "diversity"
    needs = frozenset({"cls_attention"})

    def __init__(self, *, trade: float = 0.5):
        super().__init__()
        if not 0 <= trade <= 1:
            raise ValueError(f"trade is {trade!r}, expected a number in [0, 1]")
        self.trade = trade

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep the `k[g]` tokens of every group that are salient and new."""
        groups = Groups.of(tokens)
        attention = tokens.signals.cls_attention
        assert attention is not None
        salience = groups.gather(attention.float())
        low = salience.masked_fill(~groups.valid, torch.inf).amin(1, keepdim=True)
        high = salience.masked_fill(~groups.valid, -torch.inf).amax(1, keepdim=True)
        scaled = (salience - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        kept = marginal_relevance(scaled, cosine(groups.gather(tokens.x)), groups.valid, k, self.trade)
        return give_mass(tokens, groups, kept)
