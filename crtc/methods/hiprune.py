"""HiPrune: objects of a shallow layer with their surroundings, and the attended of a deep layer (2508.00553)."""

import torch
from jaxtyping import Int
from torch import Tensor

from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.selection import raster, top_k
from crtc.tokens import Groups, Plan, Tokens


class HiPrune(Method):
    """Keeps anchors of high received attention in a shallow layer, buffers around them, and registers of a deep layer.

    round(k * alpha / 5) tokens are anchors; the tokens beside, above and below each are buffers. As in the authors'
    code these are the places +-1 and +-width in raster order, so that they go on at the end of a row, and beyond the
    image the nearest corner. The registers that fill up to k have the highest attention in the layer that feeds the
    projector. Deviations: no more than k // 5 anchors, where the code may keep more than k; dropped tokens give their
    mass to the kept token most like them.

    Args:
        alpha: share of k for anchors and buffers.
    """

    source = "HiPrune, arXiv 2508.00553"
    licence = "MIT"
    family = "saliency"
    needs = frozenset({"received_attention", "shallow_attention", "grid"})

    def __init__(self, *, alpha: float = 0.1):
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha!r}, expected a share in [0, 1]")
        self.alpha = alpha

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep `k[g]` anchors, buffers and registers of every group."""
        groups = Groups.of(tokens)
        shallow, deep = tokens.signals.shallow_attention, tokens.signals.received_attention
        assert shallow is not None and deep is not None
        grid = groups.gather(tokens.grid)
        position, size = raster(grid, groups.valid), groups.valid.sum(1)[:, None]
        column = grid[..., 2]
        width = column.amax(1) - column.masked_fill(~groups.valid, column.numel()).amin(1) + 1
        num = (k.double() * self.alpha / 5).round().long().minimum(k // 5)
        anchor = top_k(groups.gather(shallow.float()), groups.valid, num)
        at = torch.zeros_like(anchor).scatter(1, position, anchor).long()
        place = torch.arange(at.shape[1], device=at.device)
        steps = torch.stack([torch.zeros_like(width), -torch.ones_like(width), torch.ones_like(width), -width, width])
        near = (place + steps[..., None]).clamp(min=0).minimum(size - 1)
        around = torch.zeros_like(at).scatter_add(1, near.transpose(0, 1).flatten(1), at.repeat(1, len(steps)))
        early = around.gather(1, position) > 0
        score = groups.gather(deep.float()).masked_fill(early, torch.inf)
        return give_mass(tokens, groups, top_k(score, groups.valid, k))
