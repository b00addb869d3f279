"""DivPrune: the most diverse subset by greedy max-min distance (2503.02175)."""

import torch
from jaxtyping import Int
from torch import Tensor

from crtc.greedy import max_min
from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens


class DivPrune(Method):
    """Keeps tokens that are far from each other, in cosine distance d.

    The first is the one whose nearest neighbour is farthest, each next one argmax_i min_{s kept} d(i, s). Deviations:
    distances in float32; ties go to the earlier token; dropped tokens give their mass to the kept token most like them.
    """

    source = "DivPrune, arXiv 2503.02175, algorithm 1"
    licence = "CC-BY-NC-4.0"
    family = "diversity"

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep `k[g]` tokens of every group that are far apart."""
        groups = Groups.of(tokens)
        distance = (1 - cosine(groups.gather(tokens.x))).clamp(min=0)
        # Two tokens that are each other's nearest tie for the first place; rounding must not decide between them.
        distance = torch.maximum(distance, distance.transpose(1, 2))
        others = groups.valid[:, None] & ~torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
        isolation = distance.masked_fill(~others, torch.inf).amin(-1)
        first = isolation.masked_fill(~groups.valid, -torch.inf).argmax(1)
        return give_mass(tokens, groups, max_min(distance, first, groups.valid, k))
