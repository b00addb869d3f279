"""Methods that act inside the language model: in front of which layers, on which schedule, and what a layer tells."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc import cost
from crtc.methods.method import Method
from crtc.tokens import Tokens

DEPTH = 32
"""Layers of the language model in the publications, LLaVA-1.5-7B."""


class InsideMethod(Method):
    """Plans in front of some layers of the language model, each time for the tokens that are left.

    Args:
        layers: in front of which tokens are dropped; without, those published for 32 layers, in proportion.
        matched: whether `keep` and `count` speak of the mean over all layers, so that rows cost the same as those of
            methods that act before the language model; else of what is left behind the last cut, as papers do.

    Raises:
        ValueError: if the layers are not ascending numbers from 1 on, or not as many as the schedule has shares.
    """

    place = "in the language model"
    published_layers: ClassVar[tuple[int, ...]]
    shares: ClassVar[tuple[float, ...]] = (1.0,)
    """Of all tokens, what is left behind each cut; counts scale it."""

    def __init__(self, *, layers: Sequence[int] | None = None, matched: bool = True):
        super().__init__()
        if layers is not None:
            if len(layers) != len(self.shares):
                raise ValueError(f"layers is {list(layers)}, expected {len(self.shares)} of them")
            cost.check_layers(layers, max(layers, default=0) + 1)
        self.layers = None if layers is None else tuple(layers)
        self.matched = matched

    def cuts(self, depth: int) -> tuple[int, ...]:
        """The layers given, or the published ones in proportion, each at least one behind the one before."""
        if self.layers is not None:
            return self.layers
        found: list[int] = []
        for layer in self.published_layers:
            found.append(max(round(layer * depth / DEPTH), found[-1] + 1 if found else 1))
        return tuple(found)

    def cut_counts(self, k: Int[Tensor, " G"], sizes: Int[Tensor, " G"], depth: int) -> Int[Tensor, "S G"]:
        """Counts on the schedule of the method.

        Raises:
            ValueError: if the layers in front of the first cut alone cost more than a matched `k[g]`.
        """
        if bool((k == sizes).all()):
            return k[None].repeat(len(self.shares), 1)
        if self.matched:
            return cost.matched(sizes, self.shares, k, self.cuts(depth), depth)
        return cost.ending_with(sizes, self.shares, k)


def attention_paid(tokens: Tokens, asking: Bool[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Softmax attention that the asking tokens of a sequence pay to each of its tokens, mean over them and the heads.

    A token sees itself and those before it; windows of a layer and padding play no part.
    """
    queries, keys = tokens.signals.layer_queries, tokens.signals.layer_keys
    assert queries is not None and keys is not None
    paid = torch.zeros(len(tokens), dtype=torch.float32, device=tokens.x.device)
    for number in torch.unique_consecutive(tokens.sequence):
        members = (tokens.sequence == number).nonzero()[:, 0]
        asks = asking[members].nonzero()[:, 0]
        mine = keys[members].float().repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        logits = torch.einsum("qhd,khd->hqk", queries[members[asks]].float(), mine)
        later = torch.arange(len(members), device=asks.device) > asks[:, None]
        paid[members] = logits.masked_fill(later, -torch.inf).softmax(-1).mean((0, 1))
    return paid


def last_of(tokens: Tokens) -> Bool[Tensor, " N"]:
    """The last token of every sequence."""
    last = torch.ones_like(tokens.candidates)
    last[:-1] = tokens.sequence.diff() != 0
    return last


def text_behind(tokens: Tokens) -> Bool[Tensor, " N"]:
    """Tokens behind the last visual one of their sequence, its last token where there are none."""
    behind = last_of(tokens) & ~tokens.candidates
    for number in torch.unique_consecutive(tokens.sequence):
        members = (tokens.sequence == number).nonzero()[:, 0]
        visual = tokens.candidates[members].nonzero()[:, 0]
        if len(visual):
            behind[members[int(visual[-1]) + 1 :]] = True
    return behind
