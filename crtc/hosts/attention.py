"""Attention of one layer of a tower, noted where stock attention looks its function up.

So any attention implementation will do, whatever a family calls its projections, and queries and keys are those after
rotation. Weights are computed for the rows that are asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class Attended:
    """One call of an attention layer.

    Args:
        queries: after rotation.
        keys: after rotation.
        scale: of the logits.
        visible: which keys a query sees; None where it sees all.
    """

    queries: Float[Tensor, "I H P d"]
    keys: Float[Tensor, "I J P d"]
    scale: float
    visible: Bool[Tensor, "I 1 Q P"] | None

    def weights(self, start: int, stop: int) -> Float[Tensor, "I Q P"]:
        """Softmax attention of some queries, mean over heads."""
        queries = self.queries[:, :, start:stop]
        shared = queries.shape[1] // self.keys.shape[1]
        keys = self.keys if shared == 1 else self.keys.repeat_interleave(shared, 1)
        logits = (queries @ keys.transpose(-1, -2)) * self.scale
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.visible is not None:
            seen = self.visible if self.visible.shape[2] == 1 else self.visible[:, :, start:stop]
            logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
        return logits.softmax(-1).mean(1)

    def received(self) -> Float[Tensor, "I P"]:
        """What every token receives, mean over heads and the queries that see it, never the whole matrix at once."""
        images, _, num, _ = self.queries.shape
        real = torch.ones(images, num, dtype=torch.bool, device=self.queries.device)
        seen = real.new_full((images, num), num, dtype=torch.long)
        if self.visible is not None:
            full = self.visible.expand(images, 1, num, num)[:, 0]
            real = full.diagonal(dim1=1, dim2=2)  # padding does not see itself, and nobody asks it
            seen = (full & real[:, :, None]).sum(1)
        total = torch.zeros(images, num, device=self.queries.device)
        for start in range(0, num, QUERIES_AT_ONCE):
            stop = min(start + QUERIES_AT_ONCE, num)
            part = self.weights(start, stop) * real[:, start:stop, None]
            total = total + part.sum(1)
        return total / seen.clamp(min=1)


def attention_layers(root: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Layers of a tower with their attention, in order."""
    parts = dict(root.named_modules())
    found = []
    for name, part in parts.items():
        path, _, last = name.rpartition(".")
        inner = any(type(child).__name__.endswith("Attention") for child in part.children())
        stock = last.endswith(("attn", "attention")) and not isinstance(part, nn.MultiheadAttention)
        if stock and not inner and path.rpartition(".")[2].isdigit():
            found.append((parts[path], part))
    return found


@contextmanager
def attended(module: nn.Module, calls: list[Any], keep: Callable[[Attended], Any] | None = None) -> Iterator[None]:
    """While the context lasts, note what one attention module computes, whatever computes it.

    Args:
        module: of attention.
        calls: where every call is noted.
        keep: what is noted of a call; all of it without, which keeps queries and keys from being freed.
    """
    before = ALL_ATTENTION_FUNCTIONS.__dict__.get("get_interface")
    lookup = ALL_ATTENTION_FUNCTIONS.get_interface

    def get_interface(name: str, default: Any) -> Any:
        function = lookup(name, default)

        def noted(
            caller: nn.Module,
            queries: Tensor,
            keys: Tensor,
            values: Tensor,
            mask: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            given = kwargs.pop("attention_mask", mask)
            if caller is module and kwargs.get("cu_seq_lens_q") is None:  # flash attention packs images into one
                scale = kwargs.get("scaling") or queries.shape[-1] ** -0.5
                call = Attended(queries.detach(), keys.detach(), float(scale), _visible(given))
                calls.append(call if keep is None else keep(call))
            return function(caller, queries, keys, values, given, *args, **kwargs)

        return noted

    ALL_ATTENTION_FUNCTIONS.get_interface = get_interface  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS.get_interface
        if before is not None:  # of an outer context
            ALL_ATTENTION_FUNCTIONS.get_interface = before  # type: ignore[method-assign]


def _visible(mask: Any) -> Bool[Tensor, "I 1 Q P"] | None:
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return None
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
