"""DivPrune: the most diverse subset by greedy max-min distance (2503.02175)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.batching import by_group
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
        distance, isolation = by_group(apart, groups.gather(tokens.x), groups.valid)
        first = isolation.masked_fill(~groups.valid, -torch.inf).argmax(1)
        return give_mass(tokens, groups, max_min(distance, first, groups.valid, k))


def apart(x: Float[Tensor, "G M D"], valid: Bool[Tensor, "G M"]) -> tuple[Float[Tensor, "G M M"], Float[Tensor, "G M"]]:
    """Cosine distance of all pairs, and of every token to the nearest other one."""
    distance = (1 - cosine(x)).clamp_(min=0)
    # Two tokens that are each other's nearest tie for the first place; rounding must not decide between them.
    distance = torch.maximum(distance, distance.transpose(1, 2))
    own = torch.zeros_like(distance[0]).fill_diagonal_(torch.inf)
    return distance, (distance + own + torch.where(valid, 0.0, torch.inf)[:, None]).amin(-1)
