"""How much the question asks for every token: likeness to the text of the same sequence."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from crtc.tokens import CONTEXT, TEXT, Groups, Tokens

Reduce = Literal["max", "mean"]


def text_relevance(tokens: Tokens, groups: Groups, reduce: Reduce = "max") -> Float[Tensor, "G M"]:
    """Cosine of every candidate with the context text of its sequence, largest or mean; 0 where there is no text."""
    words, spoken = words_of(tokens, groups)
    seen = groups.gather(F.normalize(tokens.x.float(), dim=-1))
    asked = spoken.sum(1, keepdim=True)
    if reduce == "mean":
        return (seen @ words.sum(1)[..., None])[..., 0] / asked.clamp(min=1)
    likeness = (seen @ words.transpose(1, 2)).masked_fill(~spoken[:, None], -torch.inf)
    return likeness.amax(-1).masked_fill(asked == 0, 0)


def words_of(tokens: Tokens, groups: Groups) -> tuple[Float[Tensor, "G T D"], Bool[Tensor, "G T"]]:
    """Directions of the context text of every group's sequence, zero where padded, and which of them are real."""
    text = text_of(tokens)
    owner = tokens.sequence[groups.index[:, 0]]
    return text.gather(F.normalize(tokens.x.float(), dim=-1))[owner], text.valid[owner]


def text_of(tokens: Tokens) -> Groups:
    """The context text of every sequence, side by side."""
    flat = ((tokens.group == CONTEXT) & (tokens.kind == TEXT)).nonzero()[:, 0]
    lengths = torch.bincount(tokens.sequence[flat], minlength=int(tokens.sequence.max()) + 1)
    valid = torch.arange(max(1, int(lengths.max())), device=flat.device) < lengths[:, None]
    index = torch.zeros(valid.shape, dtype=torch.long, device=flat.device)
    index[valid] = flat
    return Groups(index, valid)
