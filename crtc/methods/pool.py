"""Average pooling over the grid, the control that merges neighbours."""

from jaxtyping import Int
from torch import Tensor

from crtc.merging import make_plan, mean
from crtc.methods.method import Method
from crtc.selection import central, regions
from crtc.tokens import Groups, Plan, Tokens


class Pool(Method):
    """Averages the tokens of k compact regions of the grid; the token nearest to a region's centre stands for it.

    It is no stand-in for a smaller image: that changes what the vision tower sees, no plan over its tokens can say it.
    Where k = s * s and s divides both sides this is adaptive average pooling to s x s. Elsewhere adaptive pooling lets
    its windows overlap or gives another number of tokens; here every token is in one of exactly k regions of nearly
    equal size, by the rule of `selection.regions`.
    """

    source = "control"
    family = "control"
    needs = frozenset({"grid"})

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Merge every group into the means of `k[g]` regions."""
        groups = Groups.of(tokens)
        grid = groups.gather(tokens.grid)
        owner = central(grid, regions(grid, groups.valid, k), groups.valid)
        return make_plan(tokens, groups, owner, mean(owner, groups.valid))
