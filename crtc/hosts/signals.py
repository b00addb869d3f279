"""What a vision tower can tell beside its features, taken while it runs once, for any family."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from crtc.hosts.attention import Attended, attended, attention_layers
from crtc.hosts.family import Modality, feature_layer, tower
from crtc.hosts.patches import reached
from crtc.hosts.visual import readable
from crtc.tokens import SignalName


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
    shallow: list[Attended] = []
    with ExitStack() as stack:
        stack.callback(torch.set_grad_enabled, grad)
        stack.callback(layers[before][0].register_forward_hook(_anchor(states)).remove)
        stack.enter_context(attended(layers[read][1], calls))
        if "shallow_attention" in names:
            stack.enter_context(attended(layers[max(1, round(len(layers) * 3 / 8)) - 1][1], shallow))
        output = run(**arguments, return_dict=True)
        torch.set_grad_enabled(True)
        rows = readable(model, output)
        owner = reached(rows, states)
    if not grad or not any(parameter.requires_grad for parameter in model.parameters()):
        output = _detached(output)
    return output, {} if owner is None else _signals(names, root, states, calls, shallow, owner, len(rows))


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


def _signals(
    names: set[SignalName],
    root: nn.Module,
    states: list[Tensor],
    calls: list[Attended],
    shallow: list[Attended],
    owner: Int[Tensor, " P"],
    num: int,
) -> dict[SignalName, Tensor]:

    def pooled(patches: Tensor) -> Tensor:
        """Mean over the patches of every row."""
        patches, inside = patches.to(owner.device), owner >= 0
        total = patches.new_zeros(num, *patches.shape[1:]).index_add(0, owner[inside], patches[inside])
        return total / torch.bincount(owner[inside], minlength=num).clamp(min=1).view(-1, *[1] * (patches.ndim - 1))

    def received(seen: list[Attended]) -> Tensor:
        return torch.cat([call.received().flatten() for call in seen])

    found: dict[SignalName, Tensor] = {}
    if "features" in names:
        found["features"] = pooled(torch.cat([state.detach().flatten(0, -2) for state in states]))
    if sum(call.queries.shape[0] * call.queries.shape[2] for call in calls) != len(owner):
        return found
    if "keys" in names:
        found["keys"] = pooled(torch.cat([call.keys.mean(1).flatten(0, 1) for call in calls]))
    if "received_attention" in names:
        found["received_attention"] = pooled(received(calls))
    if "shallow_attention" in names and shallow and len(received(shallow)) == len(owner):
        found["shallow_attention"] = pooled(received(shallow))
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
