"""How much the question asks for every token: likeness to the text of the same sequence."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from crtc.tokens import CONTEXT, TEXT, Groups, Tokens

Reduce = Literal["max", "mean"]


def text_relevance(tokens: Tokens, groups: Groups, reduce: Reduce = "max") -> Float[Tensor, "G M"]:
    """Cosine of every candidate with the context text of its sequence, largest or mean; 0 where there is no text."""
    spoken = (tokens.group == CONTEXT) & (tokens.kind == TEXT)
    flat = spoken.nonzero()[:, 0]
    lengths = torch.bincount(tokens.sequence[flat], minlength=int(tokens.sequence.max()) + 1)
    valid = torch.arange(max(1, int(lengths.max())), device=flat.device) < lengths[:, None]
    index = torch.zeros(valid.shape, dtype=torch.long, device=flat.device)
    index[valid] = flat
    text = Groups(index, valid)

    unit = F.normalize(tokens.x.float(), dim=-1)
    owner = tokens.sequence[groups.index[:, 0]]
    words = text.gather(unit)[owner]
    asked = lengths[owner][:, None]
    seen = groups.gather(unit)
    if reduce == "mean":
        return (seen @ words.sum(1)[..., None])[..., 0] / asked.clamp(min=1)
    likeness = (seen @ words.transpose(1, 2)).masked_fill(~valid[owner][:, None], -torch.inf)
    return likeness.amax(-1).masked_fill(asked == 0, 0)
