"""Attention of one layer of a tower, noted or biased where stock attention looks its function up.

So any attention implementation will do, whatever a family calls its projections, and queries and keys are those after
rotation. Weights are computed for the rows that are asked for.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crtc.hosts.mass import added

QUERIES_AT_ONCE = 256
OTHERS = ("softcap", "s_aux", "position_bias")
"""What some attention functions let into the softmax beside logits and mask."""


@dataclass(frozen=True)
class Attended:
    """One call of an attention layer.

    Args:
        queries: after rotation.
        keys: after rotation.
        scale: of the logits.
        visible: which keys a query sees; None where it sees all, or the layer is causal by itself.
        bias: what the mask adds to the logits, if it is one of logits; hidden keys have the lowest value.
        others: names of what else enters the softmax, which nobody here knows of.
    """

    queries: Float[Tensor, "I H P d"]
    keys: Float[Tensor, "I J P d"]
    scale: float
    visible: Bool[Tensor, "I 1 Q P"] | None
    bias: Float[Tensor, "I 1 Q P"] | None = None
    others: tuple[str, ...] = ()

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

    def paid(self, asking: Int[Tensor, "I A"]) -> Float[Tensor, "I H A P"]:
        """Softmax attention of some queries of every image by head, with what a mask of logits adds.

        Raises:
            ValueError: if the mask is no mask of logits, or something else enters the softmax.
        """
        if self.bias is None or self.others:
            found = f"the mask and {', '.join(self.others)}" if self.others else "no mask of logits"
            raise ValueError(f"attention reads {found}, expected a mask of logits and nothing else")
        images, heads, num, width = self.queries.shape
        accurate = torch.promote_types(self.queries.dtype, torch.float32)
        queries = self.queries.gather(2, asking[:, None, :, None].expand(-1, heads, -1, width)).to(accurate)
        # heads that share keys stand side by side, so that keys need not be repeated
        queries = queries.reshape(images, self.keys.shape[1], -1, width)
        logits = (queries @ self.keys.to(accurate).transpose(-1, -2)).view(images, heads, asking.shape[1], -1)
        row = torch.arange(images, device=asking.device)[:, None]
        bias = self.bias.expand(images, -1, num, -1)[row, :, asking].transpose(1, 2)
        return (logits * self.scale + bias).softmax(-1)

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


@dataclass(frozen=True, eq=False)
class _Watcher:
    """Who wants to know what a module of attention computes."""

    module: nn.Module
    calls: list[Any]
    keep: Callable[[Attended], Any] | None


@dataclass(frozen=True, eq=False)
class _Bias:
    """What the key columns of some modules of attention get added."""

    modules: tuple[nn.Module, ...]
    bias: Float[Tensor, "B C"]

    def onto(self, mask: Any, dtype: torch.dtype) -> Float[Tensor, "B 1 Q C"]:
        bias = self.bias.to(dtype)
        return bias[:, None, None] if mask is None else added(mask, bias)


_guests: list[_Watcher | _Bias] = []
_before: list[Any] = []
"""What stood where the lookup is replaced, if that was not the class's own."""
_watching = threading.Lock()  # several threads may run a model each


@contextmanager
def attended(module: nn.Module, calls: list[Any], keep: Callable[[Attended], Any] | None = None) -> Iterator[None]:
    """While the context lasts, note what one attention module computes, whatever computes it.

    Args:
        module: of attention.
        calls: where every call is noted.
        keep: what is noted of a call; all of it without, which keeps queries and keys from being freed.
    """
    with _stays(_Watcher(module, calls, keep)):
        yield


@contextmanager
def biased(modules: Iterable[nn.Module], bias: Float[Tensor, "B C"]) -> Iterator[None]:
    """While the context lasts, add to the logits of every key column, also where a family's layers take no mask.

    Args:
        modules: of attention, each with the same key columns, under sdpa or eager.
        bias: of every row of the batch and key column, such as the log-sizes of merged tokens.
    """
    with _stays(_Bias(tuple(modules), bias)):
        yield


@contextmanager
def _stays(guest: _Watcher | _Bias) -> Iterator[None]:
    """While the context lasts, the lookup of attention functions is ours, for this guest and those that were before."""
    with _watching:
        _guests.append(guest)
        if len(_guests) == 1:
            _before.append(ALL_ATTENTION_FUNCTIONS.__dict__.get("get_interface"))
            watched = partial(_watched, ALL_ATTENTION_FUNCTIONS.get_interface)
            ALL_ATTENTION_FUNCTIONS.get_interface = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _watching:
            _guests.remove(guest)
            if not _guests:
                del ALL_ATTENTION_FUNCTIONS.get_interface
                if (before := _before.pop()) is not None:
                    ALL_ATTENTION_FUNCTIONS.get_interface = before  # type: ignore[method-assign]


def _watched(lookup: Callable[..., Any], name: str, default: Any) -> Any:
    return _noting(lookup(name, default))


def _noting(function: Any) -> Any:
    """An attention function that tells those who watch the module that calls it, and adds what others want added."""

    def noted(
        caller: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        given = kwargs.pop("attention_mask", mask)
        if kwargs.get("cu_seq_lens_q") is None:  # flash attention packs images into one
            for watcher in [one for one in _guests if isinstance(one, _Watcher) and one.module is caller]:
                scale = kwargs.get("scaling") or queries.shape[-1] ** -0.5
                others = tuple(other for other in OTHERS if kwargs.get(other) is not None)
                shown = queries.detach(), keys.detach(), float(scale)
                call = Attended(*shown, _visible(given), _bias(given), others)
                watcher.calls.append(call if watcher.keep is None else watcher.keep(call))
        for guest in [one for one in _guests if isinstance(one, _Bias) and any(m is caller for m in one.modules)]:
            given = guest.onto(given, queries.dtype)
        return function(caller, queries, keys, values, given, *args, **kwargs)

    return noted


def _visible(mask: Any) -> Bool[Tensor, "I 1 Q P"] | None:
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return None
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _bias(mask: Any) -> Float[Tensor, "I 1 Q P"] | None:
    return mask if isinstance(mask, Tensor) and mask.ndim == 4 and mask.is_floating_point() else None
