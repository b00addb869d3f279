"""Dropping visual tokens between the layers of a stock language model, by hooks that are gone afterwards.

In front of some layers a plan is made of the tokens that are still there, from what the layer in front of it, or that
layer itself, tells of them. From there on hidden states, positions and masks are those of the tokens that stay, at
their own positions, and so are the caches of these layers, through every decoding step. Behind the last layer the
states stand in their old columns again, those of dropped tokens zero, so that the shapes of logits, labels and losses
are those of the model.

Letters: B prompts, R rows of a call (prompts repeated for beams), L columns of the prompts, n columns of a call (longer
by what was generated, if there is no cache), S columns that are left.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from crtc.cost import check_layers, read_counts
from crtc.hosts.attention import Attended, attended
from crtc.hosts.family import CACHE, cache_of
from crtc.hosts.layers import check_deepstack, decoder_layers, layer_signals, window_of
from crtc.hosts.mass import added, causal
from crtc.hosts.prompt import column_bias, columns
from crtc.hosts.vlm import Encoded
from crtc.tokens import LayerSignalName, Plan, Tokens, apply, compose, keep_all

Choose = Callable[[Tokens, int], Plan]
"""Plans in front of the numbered cut; tokens carry hidden states and signals."""


@dataclass
class Cuts:
    """What was dropped between the layers.

    Args:
        encoded: the prompts.
        layers: in front of which plans are made, ascending.
        depth: layers of the language model.
        plans: of all tokens, by layer: what is left from it on.
        seconds: spent on planning.
    """

    encoded: Encoded
    layers: tuple[int, ...]
    depth: int
    plans: dict[int, Plan] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def plan(self) -> Plan:
        """What is left behind the last cut."""
        return self.plans[max(self.plans)]

    @property
    def counts(self) -> Int[Tensor, "depth G"]:
        """Visual tokens of every group that each layer reads."""
        left = torch.stack([plan.num_kept for _, plan in sorted(self.plans.items())])
        return read_counts(self.encoded.tokens.group_sizes, left, sorted(self.plans), self.depth)


@dataclass(frozen=True)
class _View:
    """What is left of the prompts: for every column the one where it stood, -1 where padded, and its bias."""

    order: Int[Tensor, "B S"]
    bias: Float[Tensor, "B S"] | None

    @cached_property
    def full(self) -> bool:
        """Whether no column is padding."""
        return bool((self.order >= 0).all())


@contextmanager
def cut_inside(
    encoded: Encoded,
    layers: Sequence[int],
    choose: Choose,
    signals: Sequence[LayerSignalName],
    *,
    own: bool = False,
    mass: bool = False,
    seen: Bool[Tensor, " N"] | None = None,
) -> Iterator[Cuts]:
    """While the context lasts, the model that encoded the prompts reads them with fewer tokens in its later layers.

    The prompts are to be given whole, to a plain call or to `generate`, with what `encode` found in the place of
    pixels. Rows repeated for beams, several answers and decoding without a cache work.

    Args:
        encoded: the prompts.
        layers: in front of which `choose` is asked.
        choose: plans for the tokens that are still there.
        signals: what the tokens are to carry.
        own: whether queries and keys are those of the layer itself, which is run once more for it.
        mass: whether later layers add log(size) to the logits of a kept token's key column.
        seen: tokens that `choose` may see, answers not among them; all without.

    Raises:
        ValueError: if the model or the layers do not suit, or a call does not bring the whole prompts.
    """
    parts = decoder_layers(encoded.model)
    check_layers(layers, len(parts))
    check_deepstack(encoded, layers)
    cuts = Cuts(encoded, tuple(layers), len(parts))
    knife = _Knife(cuts, choose, signals, own, mass, seen, [attention for _, attention in parts])
    with ExitStack() as stack:
        for layer in layers if not own else ():
            stack.enter_context(attended(parts[layer - 1][1], knife.calls[layer]))
        for number in range(layers[0], len(parts)):
            module = parts[number][0]
            hook = module.register_forward_pre_hook(knife.hook(number), with_kwargs=True)
            stack.callback(hook.remove)
        stack.callback(parts[-1][0].register_forward_hook(knife.restore).remove)
        yield cuts


class _Knife:
    def __init__(
        self,
        cuts: Cuts,
        choose: Choose,
        signals: Sequence[LayerSignalName],
        own: bool,
        mass: bool,
        seen: Bool[Tensor, " N"] | None,
        attentions: list[nn.Module],
    ):
        self.cuts, self.encoded, self.choose, self.signals = cuts, cuts.encoded, choose, signals
        self.own, self.mass, self.attentions = own, mass, attentions
        self.calls: dict[int, list[Attended]] = {layer: [] for layer in cuts.layers}
        self.views: dict[int, _View | None] = {}
        self.step: tuple[Any, ...] = ()
        self.mask: Tensor | None = None
        """Of the latest decoding step, and what it is of."""
        self.width = 0
        """Columns of the call that read the prompts."""
        self.current: _View | None = None
        """Of the call that reads the prompts, while it lasts."""
        tokens = cuts.encoded.tokens
        shown = torch.ones_like(tokens.candidates) if seen is None else seen
        self.shown = shown.nonzero()[:, 0]
        self.tokens = tokens.where(shown)

    def hook(self, number: int) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if number == self.cuts.layers[0]:
                self.current = None
            cache = cache_of(kwargs)
            if cache is not None and int(cache.get_seq_length(number)):
                if self.calls.get(number):
                    self.calls[number].clear()
                changed = self._step(number, hidden, kwargs)
            else:
                hidden, changed = self._prompt(number, module, hidden, args[1:], kwargs)
            return (hidden, *args[1:]) if args else (), changed if args else {**changed, "hidden_states": hidden}

        return before

    def restore(self, module: nn.Module, args: Any, output: Any) -> Any:
        """States in the columns where they stood, zero where there are none any more."""
        view, self.current = self.current, None
        if view is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        order = _repeated(self._extended(view).order, len(hidden))
        full = hidden.new_zeros(len(hidden), self.width, hidden.shape[-1])
        row, place = (order >= 0).nonzero(as_tuple=True)
        full = full.index_put((row, order[row, place]), hidden[row, place])
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _prompt(
        self, number: int, module: nn.Module, hidden: Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Inputs of a layer that reads the prompts."""
        if number == self.cuts.layers[0]:
            self.width = hidden.shape[1]
            length = self.encoded.inputs["input_ids"].shape[1]
            if self.width < length:
                raise ValueError(f"a call brings {self.width} columns of prompts of {length}, expected all at once")
        changed = self._arguments(number, hidden, kwargs)
        if number in self.cuts.layers:
            view = self._planned(number, module, hidden, rest, changed)
            if view is not self.current:
                hidden = self._left(number, hidden, view)
                self.current = view
                changed = self._arguments(number, hidden, kwargs)
        self.views[number] = self.current
        return hidden, changed

    def _planned(
        self, number: int, module: nn.Module, hidden: Tensor, rest: tuple[Any, ...], changed: dict[str, Any]
    ) -> _View | None:
        """What is left from a layer on; the current view itself if all of it."""
        before = self.cuts.plans.get(self._layer_before(number))
        alive = self.shown if before is None else self.shown[_stay(before)[self.shown]]
        repeats = len(hidden) // len(self.encoded.inputs["input_ids"])
        row = self.encoded.tokens.sequence[alive]
        place = self._places()[row, self.encoded.column[alive]]
        calls = self.calls[number]
        if self.own:
            with attended(self.attentions[number], calls), torch.no_grad():
                module.forward(hidden, *rest, **{**changed, CACHE: None})
        call, tokens = calls[-1], self.encoded.tokens
        calls.clear()
        x = hidden[row * repeats, place]
        told = changed.get("position_embeddings")
        bag = layer_signals(
            self.encoded.model, self.signals, call, told, x, tokens.x[alive].to(x.dtype), row * repeats, place
        )
        shown = Tokens(x.detach(), tokens.kind[alive], row, tokens.group[alive], tokens.grid[alive], bag)
        begun = time.perf_counter()
        plan = self.choose(shown, self.cuts.layers.index(number))
        self.cuts.seconds += time.perf_counter() - begun
        everything = before or keep_all(tokens)
        whole = compose(everything, plan, alive)
        self.cuts.plans[number] = whole
        self.merged = (row, place, alive, plan) if plan.merges else None
        if int(plan.num_kept.sum()) == int(shown.candidates.sum()):
            return self.current
        order = columns(self.encoded, whole)
        return _View(order, column_bias(self.encoded, whole, order) if self.mass else None)

    def _layer_before(self, number: int) -> int:
        return max((layer for layer in self.cuts.layers if layer < number), default=-1)

    def _left(self, number: int, hidden: Tensor, view: _View | None) -> Tensor:
        """Hidden states of the tokens that stay, merged where the plan merges."""
        assert view is not None
        repeats = len(hidden) // len(self.encoded.inputs["input_ids"])
        if self.merged is not None:
            row, place, _, plan = self.merged
            for copy in range(repeats):
                rows = row * repeats + copy
                content = apply(plan, hidden[rows, place])
                hidden = hidden.index_put((rows[plan.kept], place[plan.kept]), content)
        order = self._extended(view).order
        places = self._places().gather(1, order.clamp(min=0))
        index = _repeated(places, len(hidden))[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, index)

    def _places(self) -> Int[Tensor, "B n"]:
        """For every column of the full call its place in the current one."""
        rows = len(self.encoded.inputs["input_ids"])
        full = torch.arange(self.width, device=self.encoded.column.device).expand(rows, -1)
        if self.current is None:
            return full
        order = self._extended(self.current).order
        row, place = (order >= 0).nonzero(as_tuple=True)
        return torch.zeros_like(full).index_put((row, order[row, place]), place)

    def _extended(self, view: _View) -> _View:
        """The view with the columns behind the prompts, as calls without a cache have them."""
        length = self.encoded.inputs["input_ids"].shape[1]
        behind = torch.arange(length, self.width, device=view.order.device).expand(len(view.order), -1)
        bias = None if view.bias is None else F.pad(view.bias, (0, behind.shape[1]))
        return _View(torch.cat([view.order, behind], 1), bias)

    def _arguments(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a layer for the columns that are left."""
        if self.current is None:
            return dict(kwargs)
        view = self._extended(self.current)
        order = _repeated(view.order, len(hidden))
        index = order.clamp(min=0)
        changed = dict(kwargs)
        for name, value in kwargs.items():
            if name == "position_embeddings":
                changed[name] = tuple(_picked(one, index, -2) for one in value)
            elif name == "position_ids" and isinstance(value, Tensor):
                changed[name] = _picked(value, index, -1)
            elif name not in ("hidden_states", "attention_mask") and isinstance(value, Tensor):
                aligned = value.ndim >= 2 and value.shape[:2] == (len(hidden), self.width)
                changed[name] = value[torch.arange(len(hidden))[:, None], index] if aligned else value
        cache = cache_of(kwargs)
        length = order.shape[1]
        if cache is not None:
            length = int(cache.get_mask_sizes(order.shape[1], number)[0])
        changed["attention_mask"] = _short_mask(kwargs.get("attention_mask"), view, self.width, length, hidden)
        return changed

    def _step(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a layer that reads what is generated, its cache shorter than the first layers' is."""
        view = self.views.get(number)
        if view is None:
            return dict(kwargs)
        cache, queries = cache_of(kwargs), hidden.shape[1]
        length, offset = (int(size) for size in cache.get_mask_sizes(queries, number))
        past, window = int(cache.get_seq_length(number)), window_of(self.encoded.model, number)
        if queries == 1 and view.bias is None and window is None and length == past + 1 and view.full:
            return {**kwargs, "attention_mask": None}  # nothing is hidden, and nothing need be asked of the device
        step = (id(view), window, past, queries, length, offset, len(hidden))
        if self.step != step:  # layers that lost the same read the same mask
            self.step, self.mask = step, self._step_mask(view, window, past, queries, length, offset, hidden)
        return {**kwargs, "attention_mask": self.mask}

    def _step_mask(
        self, view: _View, window: int | None, past: int, queries: int, length: int, offset: int, hidden: Tensor
    ) -> Tensor | None:
        """What the queries of a decoding step see of a cache, with the bias of the columns."""
        view = self._extended(view)
        new = torch.arange(past + queries - view.order.shape[1], device=view.order.device) + self.width
        origin = torch.cat([view.order, new.expand(len(view.order), -1)], 1)
        seen = causal(queries, origin.shape[1], start=past, device=origin.device) & (origin >= 0)[:, None, None]
        if window is not None:
            seen = seen & (origin[:, None, -queries:, None] - origin[:, None, None] < window)
        bias = None if view.bias is None else F.pad(view.bias, (0, origin.shape[1] - view.order.shape[1]))
        gap = max(0, offset + length - origin.shape[1])
        seen = F.pad(seen, (0, gap))[..., offset : offset + length]
        bias = None if bias is None else F.pad(bias, (0, gap))[:, offset : offset + length]
        return None if bias is None and bool(seen.all()) else _logits(seen, bias, hidden)


def _stay(plan: Plan) -> Bool[Tensor, " N"]:
    stays = plan.group < 0
    stays[plan.kept] = True
    return stays


def _repeated(value: Tensor, rows: int) -> Tensor:
    return value.repeat_interleave(rows // len(value), 0)


def _picked(value: Tensor, index: Int[Tensor, "R S"], dim: int) -> Tensor:
    """Some columns of every row of a tensor that has the rows, or one for all, in front of the columns."""
    shape = [*value.shape]
    batch = value.ndim + dim - 1
    shape[batch] = len(index)
    view = [1] * value.ndim
    view[batch], view[value.ndim + dim] = index.shape
    shape[value.ndim + dim] = index.shape[1]
    return value.expand(*(len(index) if d == batch else -1 for d in range(value.ndim))).gather(
        value.ndim + dim, index.view(view).expand(shape)
    )


def _short_mask(mask: Tensor | None, view: _View, width: int, length: int, hidden: Tensor) -> Tensor | None:
    """The mask of a call that reads prompts, for the columns that are left, in a cache of `length` columns."""
    valid = view.order >= 0
    if mask is None and view.bias is None and bool(valid.all()) and length == view.order.shape[1]:
        return None
    if mask is None:
        mask = causal(width, width, start=0, device=hidden.device)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    order = _repeated(view.order.clamp(min=0), len(hidden))
    seen = seen[:, :1].expand(len(hidden), -1, -1, -1)
    seen = seen.gather(2, order[:, None, :, None].expand(-1, 1, -1, seen.shape[-1]))
    seen = seen.gather(3, order[:, None, None].expand(-1, 1, order.shape[1], -1))
    seen = seen & _repeated(valid, len(hidden))[:, None, None]
    gap = max(0, length - order.shape[1])
    bias = None if view.bias is None else F.pad(view.bias, (0, gap))
    return _logits(F.pad(seen, (0, gap)), bias, hidden)


def _logits(seen: Bool[Tensor, "B 1 Q C"], bias: Float[Tensor, "B C"] | None, hidden: Tensor) -> Tensor:
    columns = hidden.new_zeros(len(seen), seen.shape[-1]) if bias is None else _repeated(bias.to(hidden), len(seen))
    return _repeated(added(seen, columns), len(hidden))
