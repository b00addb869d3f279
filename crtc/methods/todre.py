"""ToDRE, stage one: the most attended token, then those that add up to the least likeness (2505.18757)."""

import torch
from jaxtyping import Int
from torch import Tensor

from crtc.greedy import min_sum
from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens


class ToDRE(Method):
    """Begins with the token of highest [CLS] attention and adds argmin_i sum_{c kept} cos(x_i, x_c).

    x are encoder features. Deviations: stage two, which removes all visual tokens late in the language model, is
    not a choice of tokens and not here; dropped tokens give their mass to the kept token most like them.
    """

    source = "ToDRE, arXiv 2505.18757, stage one"
    place = "before the projector, in the language model"
    family = "diversity"
    needs = frozenset({"cls_attention", "features"})

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep `k[g]` tokens of every group that are least alike in sum."""
        groups = Groups.of(tokens)
        attention, features = tokens.signals.cls_attention, tokens.signals.features
        assert attention is not None and features is not None
        pivot = groups.gather(attention.float()).masked_fill(~groups.valid, -torch.inf).argmax(1)
        return give_mass(tokens, groups, min_sum(cosine(groups.gather(features)), pivot, groups.valid, k))
