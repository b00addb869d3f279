"""VisionZip: tokens of high attention as they are, the others merged by their keys (2412.04467)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crtc.merging import make_plan, mean, nearest_kept
from crtc.methods.method import Method
from crtc.selection import top_k
from crtc.tokens import Groups, Plan, Tokens


class VisionZip(Method):
    """Keeps dominant tokens by [CLS] attention and merges the rest into contextual ones by cosine of their keys.

    Of the m tokens that are not dominant, in their order, every `m // contextual`-th is a target, and each other one
    joins the target with the most similar key. As in the authors' code a contextual token is x_target + mean(joined),
    about twice as long as others.

    Deviations: the [CLS] token itself, which the code keeps on top, is not among the tokens; contextual tokens stand
    where their targets stood, not after the dominant ones; merging is after the projector. With k = 1 the one token is
    dominant and takes over the mass of all.

    Args:
        dominant: parts of k that are dominant.
        contextual: parts of k that are contextual, rounded to whole tokens, at least one.
        normalise: contextual tokens are means of target and joined, all alike.
    """

    source = "VisionZip, arXiv 2412.04467, section 3"
    licence = "Apache-2.0"
    place = "before the projector"
    family = "saliency"
    needs = frozenset({"cls_attention", "keys"})
    uses_order = True

    def __init__(self, dominant: int = 54, contextual: int = 10, *, normalise: bool = False):
        super().__init__()
        if dominant < 1:
            raise ValueError(f"dominant is {dominant!r}, expected at least 1")
        if contextual < 1:
            raise ValueError(f"contextual is {contextual!r}, expected at least 1")
        self.dominant = dominant
        self.contextual = contextual
        self.normalise = normalise

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep `k[g]` dominant and contextual tokens of every group."""
        groups = Groups.of(tokens)
        attention, keys = tokens.signals.cls_attention, tokens.signals.keys
        assert attention is not None and keys is not None
        contextual = (k * self.contextual / (self.dominant + self.contextual)).round().long().clamp(min=1)
        contextual = contextual.minimum(k - 1)
        dominant = top_k(groups.gather(attention.float()), groups.valid, k - contextual)
        target = spaced(groups.valid & ~dominant, contextual)
        alone = contextual[:, None] == 0
        owner = nearest_kept(groups.gather(keys), torch.where(alone, dominant, target), groups.valid)
        owner = torch.where(dominant, torch.arange(owner.shape[1], device=owner.device), owner)
        if self.normalise:
            weight = mean(owner, groups.valid).masked_fill(alone & ~dominant, 0)
            weight = weight.masked_fill(dominant, 1)
        else:
            kept = dominant | target
            joined = mean(owner.masked_fill(kept, -1), groups.valid).masked_fill(alone, 0)
            weight = torch.where(kept, 1, joined)
        return make_plan(tokens, groups, owner, weight)


def spaced(rest: Bool[Tensor, "G M"], num: Int[Tensor, " G"]) -> Bool[Tensor, "G M"]:
    """Of every group's m tokens in `rest` the first `num[g]` at a stride of `m // num[g]`."""
    step = (rest.sum(1) // num.clamp(min=1)).clamp(min=1)[:, None]
    place = rest.cumsum(1) - 1
    return rest & (place % step == 0) & (place // step < num[:, None])
