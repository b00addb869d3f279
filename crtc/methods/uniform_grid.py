"""Evenly spaced tokens, the control that looks at nothing but positions."""

from typing import Literal

from jaxtyping import Int
from torch import Tensor

from crtc.merging import centres, give_mass
from crtc.methods.method import Method
from crtc.selection import central, raster, regions, stride
from crtc.tokens import Groups, Plan, Tokens


class UniformGrid(Method):
    """Keeps tokens that are evenly spread over the grid.

    With two dimensions the grid is cut into k compact regions of nearly equal size (`selection.regions`: the squares
    of a sqrt(k) x sqrt(k) lattice where they fit) and the token nearest to the centre of each stays. With one, the
    tokens `floor(i * n / k)` in raster order stay. The others give their mass to the kept token most like them.

    Args:
        dims: 2 spreads over the grid, 1 along the raster order.
    """

    source = "control"
    family = "control"
    needs = frozenset({"grid"})

    def __init__(self, dims: Literal[1, 2] = 2):
        super().__init__()
        if dims not in (1, 2):
            raise ValueError(f"dims is {dims!r}, expected 1 or 2")
        self.dims = dims

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep the centres of `k[g]` regions of every group."""
        groups = Groups.of(tokens)
        grid = groups.gather(tokens.grid)
        if self.dims == 1:
            kept = stride(raster(grid, groups.valid), groups.valid, k)
        else:
            kept = centres(central(grid, regions(grid, groups.valid, k), groups.valid))
        return give_mass(tokens, groups, kept)
