"""What a vision tower can tell beside its features, taken while it runs once, for any family."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crtc.hosts.attention import Attended, attended, attention_layers
from crtc.hosts.family import Modality, feature_layer, tower
from crtc.hosts.patches import reached, shapes_only
from crtc.hosts.visual import readable, units
from crtc.tokens import TOWER_SIGNALS, SignalName


def capture(
    model: Any,
    modality: Modality,
    arguments: dict[str, Any],
    wanted: Iterable[SignalName],
    *,
    signal_layer: int | None = None,
) -> tuple[Any, dict[SignalName, Tensor]]:
    """Run the model's feature function once and keep the wanted signals, `[R, ...]` beside its R visual rows.

    `shallow_attention` is of the layer three eighths up the tower. A row that no patch reaches, such as a newline, has
    zeros. A tower without [CLS] gives no `cls_attention`; one whose attention is not that of transformers gives none
    at all, nor does a projector that mixes patches freely.

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
    names: set[SignalName] = set(wanted).intersection(TOWER_SIGNALS)  # others are not of the tower
    root = tower(model, modality) if names else None
    if root is None:
        return run(**arguments, return_dict=True), {}
    layers = attention_layers(root)
    before = _before_projector(layers, feature_layer(model, arguments.get("vision_feature_layer")))
    read = before if signal_layer is None else _chosen(layers, signal_layer)
    if not layers:
        return run(**arguments, return_dict=True), {}
    grad = torch.is_grad_enabled()
    if torch.is_inference_mode_enabled():
        arguments = {name: _plain(value) for name, value in arguments.items()}
    states: list[Tensor] = []
    calls: list[_Told] = []
    shallow: list[_Told] = []
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # which records no graph
        torch.set_grad_enabled(grad)
        stack.callback(torch.set_grad_enabled, grad)
        for parameter in () if grad else filter(lambda one: one.requires_grad, model.parameters()):
            parameter.requires_grad_(False)  # else the graph below would hold what only their gradients need
            stack.callback(parameter.requires_grad_, True)
        stack.callback(layers[before][0].register_forward_hook(_anchor(states)).remove)
        if before + 1 < len(layers):  # what follows is not read: no graph is kept of it
            stack.callback(layers[before + 1][0].register_forward_pre_hook(_switch(grad)).remove)
            stack.callback(layers[-1][0].register_forward_hook(_switch(True)).remove)
        cls = "cls_attention" in names and _has_cls(root)
        told = partial(_told, keys="keys" in names, received="received_attention" in names, ends=cls)
        stack.enter_context(attended(layers[read][1], calls, told))
        if "shallow_attention" in names:
            told = partial(_told, received=True)
            stack.enter_context(attended(layers[shallow_layer(len(layers))][1], shallow, told))
        if not grad:
            stack.enter_context(shapes_only())
        output = run(**arguments, return_dict=True)
        torch.set_grad_enabled(True)
        owner = reached(readable(model, output), states)
    if not grad or not any(parameter.requires_grad for parameter in model.parameters()):
        output = _detached(output)
    num = sum(len(unit) for unit in units(output))
    return output, {} if owner is None else _signals(names, states, calls, shallow, owner, num)


def _plain(value: Any) -> Any:
    """A tensor that a graph can be recorded of."""
    with torch.inference_mode(False):
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def shallow_layer(depth: int) -> int:
    """The layer that is three eighths up a tower, which `shallow_attention` is of."""
    return max(1, round(depth * 3 / 8)) - 1


@dataclass(frozen=True)
class _Told:
    """What stays of a call of attention: little, where its queries and keys are as large as the states of the tower.

    Args:
        images: in the call.
        length: tokens of each.
        keys: mean over heads.
        received: what every token receives.
        ends: what the first and the last token pay.
    """

    images: int
    length: int
    keys: Float[Tensor, "I P d"] | None
    received: Float[Tensor, "I P"] | None
    ends: Float[Tensor, "I 2 P"] | None


def _told(call: Attended, *, keys: bool = False, received: bool = False, ends: bool = False) -> _Told:
    images, _, length, _ = call.queries.shape
    with torch.no_grad():
        return _Told(
            images,
            length,
            call.keys.mean(1) if keys else None,
            call.received() if received else None,
            torch.cat([call.weights(0, 1), call.weights(length - 1, length)], 1) if ends else None,
        )


def _anchor(states: list[Tensor]) -> Any:
    """A hook that lets a graph begin at the output of a layer."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        if not state.requires_grad:
            state.requires_grad_()
        torch.set_grad_enabled(True)  # until `capture` sets it back
        states.append(state)

    return hook


def _switch(grad: bool) -> Any:
    """A hook behind which gradients are recorded or not."""

    def hook(module: nn.Module, *_: Any) -> None:
        torch.set_grad_enabled(grad)

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


def _signals(
    names: set[SignalName],
    states: list[Tensor],
    calls: list[_Told],
    shallow: list[_Told],
    owner: Int[Tensor, " P"],
    num: int,
) -> dict[SignalName, Tensor]:
    def pooled(patches: Iterable[Tensor]) -> Tensor:
        """Mean over the patches of every row."""
        flat = torch.cat([part.flatten(0, 1) for part in patches]).to(owner.device)
        inside = owner >= 0
        total = flat.new_zeros(num, *flat.shape[1:]).index_add(0, owner[inside], flat[inside])
        return total / torch.bincount(owner[inside], minlength=num).clamp(min=1).view(-1, *[1] * (flat.ndim - 1))

    def whole(seen: list[_Told]) -> bool:
        return bool(seen) and sum(call.images * call.length for call in seen) == len(owner)

    found: dict[SignalName, Tensor] = {}
    if "features" in names:
        found["features"] = pooled(state.detach().flatten(0, -2)[None] for state in states)
    if not whole(calls):
        return found
    if "keys" in names:
        found["keys"] = pooled(call.keys for call in calls if call.keys is not None)
    if "received_attention" in names:
        found["received_attention"] = pooled(call.received for call in calls if call.received is not None)
    if "shallow_attention" in names and whole(shallow):
        found["shallow_attention"] = pooled(call.received for call in shallow if call.received is not None)
    if len(calls) == 1 and calls[0].ends is not None:
        own = owner.view(-1, calls[0].length)
        last = bool((own[:, 0] >= 0).all() and (own[:, -1] < 0).all())
        found["cls_attention"] = pooled([calls[0].ends[:, -1 if last else 0]])
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
