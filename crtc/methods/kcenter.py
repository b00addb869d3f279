"""k-center: no token far from a kept one (Gonzalez, 1985)."""

from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from crtc.greedy import farthest_points, most_central
from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.tokens import Groups, Plan, Tokens


class KCenter(Method):
    """Greedy farthest points: the largest distance to the nearest kept token is at most twice the least possible.

    The first is the token nearest to the mean of its group. Dropped tokens give their mass to the kept token most like
    them.

    Args:
        spherical: whether distance is between directions, not between points.
    """

    source = "k-center, Gonzalez 1985; as core-set, arXiv 1708.00489"
    licence = "MIT"
    family = "diversity"

    def __init__(self, *, spherical: bool = False):
        super().__init__()
        self.spherical = spherical

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep `k[g]` tokens of every group that leave none far away."""
        groups = Groups.of(tokens)
        x = groups.gather(tokens.x).float()
        if self.spherical:
            x = F.normalize(x, dim=-1)
        return give_mass(tokens, groups, farthest_points(x, most_central(x, groups.valid), groups.valid, k))
