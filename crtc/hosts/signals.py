"""What a vision tower can tell beside its features, taken while it runs once, for any family.

Queries and keys are read where stock attention looks its function up, so any attention implementation will do, and
they are those after rotation. Which patches a visual token is made of is asked of the model itself: gradients reach
from a token exactly to its patches. So no family's geometry (dropped [CLS], pooling, shuffled windows) stands here.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crtc.hosts.family import Modality, feature_layer, tower
from crtc.hosts.visual import readable
from crtc.tokens import SignalName

QUERIES_AT_ONCE = 256
DIGIT = 3
"""Bits of a row's number that are told by one gradient."""
ROUNDING = 2**-6
"""Of gradients, relative to their largest channel; what reaches a row less is not a part of it."""


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
        keys = self.keys.repeat_interleave(queries.shape[1] // self.keys.shape[1], 1)
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


def capture(
    model: Any,
    modality: Modality,
    arguments: dict[str, Any],
    wanted: Iterable[SignalName],
    *,
    signal_layer: int | None = None,
) -> tuple[Any, dict[SignalName, Tensor]]:
    """Run the model's feature function once and keep the wanted signals, `[R, ...]` beside its R visual rows.

    A row that no patch reaches, such as a newline, has zeros. A tower without [CLS] gives no `cls_attention`; one whose
    attention is not that of transformers gives none at all, nor does a projector that mixes patches freely.

    Args:
        model: the host.
        modality: what is encoded.
        arguments: of the feature function.
        wanted: names of signals.
        signal_layer: attention layer of the tower to read, the one before the projector without.

    Raises:
        ValueError: if the tower has no such layer, or the projector reads its embeddings.
    """
    run = getattr(model.base_model, f"get_{modality}_features")
    names = set(wanted)
    root = tower(model, modality) if names else None
    if root is None:
        return run(**arguments, return_dict=True), {}
    layers = attention_layers(root)
    before = _before_projector(layers, feature_layer(model, arguments.get("vision_feature_layer")))
    read = before if signal_layer is None else _chosen(layers, signal_layer)
    if not layers:
        return run(**arguments, return_dict=True), {}
    grad = torch.is_grad_enabled()
    states: list[Tensor] = []
    calls: list[Attended] = []
    with ExitStack() as stack:
        stack.callback(torch.set_grad_enabled, grad)
        stack.callback(layers[before][0].register_forward_hook(_anchor(states)).remove)
        stack.enter_context(attended(layers[read][1], calls))
        output = run(**arguments, return_dict=True)
        torch.set_grad_enabled(True)
        rows = readable(model, output)
        owner = reached(rows, states)
    if not grad or not any(parameter.requires_grad for parameter in model.parameters()):
        output = _detached(output)
    return output, {} if owner is None else _signals(names, root, states, calls, owner, len(rows))


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
def attended(module: nn.Module, calls: list[Attended]) -> Iterator[None]:
    """While the context lasts, note what one attention module computes, whatever computes it."""
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
                calls.append(Attended(queries.detach(), keys.detach(), float(scale), _visible(given)))
            return function(caller, queries, keys, values, given, *args, **kwargs)

        return noted

    ALL_ATTENTION_FUNCTIONS.get_interface = get_interface  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS.get_interface
        if before is not None:  # of an outer context
            ALL_ATTENTION_FUNCTIONS.get_interface = before  # type: ignore[method-assign]


def reached(rows: Float[Tensor, "R D"], states: list[Tensor]) -> Int[Tensor, " P"] | None:
    """For every patch the one visual row that it is part of, -1 for none; None if patches go into several rows.

    The gradient of a weighted sum of rows at a patch of one row is that row's weight times its gradient. Rows are
    numbered by weights, a digit of their number at a time; powers of two, which change no bit of a gradient but its
    exponent, so that any float type will do.

    Args:
        rows: visual rows, with their graph.
        states: the states of the tower that they were made of, one tensor or several.
    """
    if not rows.requires_grad or not states:
        return None
    number = torch.arange(len(rows), device=rows.device)
    drawn = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0)).to(rows.device, rows.dtype)

    def gradient(weight: Tensor) -> Float[Tensor, "P C"]:
        found = torch.autograd.grad(
            rows, states, drawn * weight.to(rows.dtype)[:, None], retain_graph=True, materialize_grads=True
        )
        return torch.cat([part.flatten(0, -2) for part in found]).to(rows.device, torch.float32)

    plain = gradient(torch.ones_like(number))
    some, channel = plain.abs().amax(1) > 0, plain.abs().argmax(1, keepdim=True)
    plain, owner = plain[some], torch.zeros_like(number[:1]).expand(len(plain)).clone()
    for shift in range(0, max(1, (len(rows) - 1).bit_length()), DIGIT):
        weighted = gradient(2 ** ((number >> shift) % 2**DIGIT))[some]
        digit = (weighted / plain).gather(1, channel[some])[:, 0].clamp(min=0).log2().round()
        strays = (weighted - plain * 2 ** digit[:, None]).abs().amax(1) > ROUNDING * weighted.abs().amax(1)
        if bool((strays | (digit < 0) | (digit >= 2**DIGIT)).any()):
            return None
        owner[some] += digit.long() << shift
    return owner.masked_fill(~some, -1)


def _anchor(states: list[Tensor]) -> Any:
    """A hook that lets a graph begin at the output of a layer."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        if not state.requires_grad:
            state.requires_grad_()
        torch.set_grad_enabled(True)  # until `capture` sets it back
        states.append(state)

    return hook


def _before_projector(layers: list[tuple[nn.Module, nn.Module]], state: int | list[int]) -> int:
    number = state if isinstance(state, int) else state[-1]
    place = number - 1 if number > 0 else number + len(layers)
    if layers and (number == 0 or not 0 <= place < len(layers)):
        raise ValueError(f"vision_feature_layer is {state}, which no attention layer of {len(layers)} puts out")
    return place


def _chosen(layers: list[tuple[nn.Module, nn.Module]], layer: int) -> int:
    if not -len(layers) <= layer < len(layers):
        raise ValueError(f"signal_layer is {layer}, but the tower has {len(layers)} attention layers")
    return layer


def _visible(mask: Any) -> Bool[Tensor, "I 1 Q P"] | None:
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return None
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _signals(
    names: set[SignalName],
    root: nn.Module,
    states: list[Tensor],
    calls: list[Attended],
    owner: Int[Tensor, " P"],
    num: int,
) -> dict[SignalName, Tensor]:

    def pooled(patches: Tensor) -> Tensor:
        """Mean over the patches of every row."""
        patches, inside = patches.to(owner.device), owner >= 0
        total = patches.new_zeros(num, *patches.shape[1:]).index_add(0, owner[inside], patches[inside])
        return total / torch.bincount(owner[inside], minlength=num).clamp(min=1).view(-1, *[1] * (patches.ndim - 1))

    found: dict[SignalName, Tensor] = {}
    if "features" in names:
        found["features"] = pooled(torch.cat([state.detach().flatten(0, -2) for state in states]))
    if sum(call.queries.shape[0] * call.queries.shape[2] for call in calls) != len(owner):
        return found
    if "keys" in names:
        found["keys"] = pooled(torch.cat([call.keys.mean(1).flatten(0, 1) for call in calls]))
    if "received_attention" in names:
        found["received_attention"] = pooled(torch.cat([call.received().flatten() for call in calls]))
    if "cls_attention" in names and len(calls) == 1 and _has_cls(root):
        length = calls[0].queries.shape[2]
        ends = owner.view(-1, length)
        last = bool((ends[:, 0] >= 0).all() and (ends[:, -1] < 0).all())
        row = length - 1 if last else 0
        found["cls_attention"] = pooled(calls[0].weights(row, row + 1)[:, 0].flatten())
    return found


def _has_cls(root: nn.Module) -> bool:
    return any(name.rpartition(".")[2] in ("class_embedding", "cls_token") for name, _ in root.named_parameters())


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):  # a ModelOutput, whose fields are attributes too
        for name in list(value):
            value[name] = _detached(value[name])
        return value
    if isinstance(value, list | tuple):
        return type(value)(_detached(part) for part in value)
    return value
