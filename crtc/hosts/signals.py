"""What the vision tower can tell beside its features, taken by temporary hooks while it runs once."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from crtc.tokens import SignalName

T = TypeVar("T")
QUERIES_AT_ONCE = 256


def capture(
    model: LlavaForConditionalGeneration,
    run: Callable[[], T],
    wanted: Iterable[SignalName],
    *,
    feature_layer: int | list[int],
    drop_first: bool,
) -> tuple[T, dict[SignalName, Tensor]]:
    """Run the tower and projector once and keep the wanted signals, `[images, rows, ...]` each.

    Queries and keys are read off the projections of the attention layer whose output is the selected feature layer (the
    last one of several), so any attention implementation will do; `shallow_attention` is of the layer three eighths up
    the tower. A tower without [CLS] gives no `cls_attention`.

    Args:
        model: the host.
        run: encodes and projects the images.
        wanted: names of signals.
        feature_layer: the hidden state that the projector reads.
        drop_first: whether the projector is not given the first row, [CLS].

    Raises:
        ValueError: if attention is wanted of a tower that is not built of `encoder.layers` with `self_attn`, or of its
            embeddings.
    """
    names = set(wanted)
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        if "features" in names:
            projector = model.model.multi_modal_projector
            hooks.callback(projector.register_forward_pre_hook(_keep_input(seen, "features")).remove)
        if names - {"features"}:
            attention = _attention(model.model.vision_tower, feature_layer)
            for name, part in (("queries", attention.q_proj), ("keys", attention.k_proj)):
                hooks.callback(part.register_forward_hook(_keep_output(seen, name)).remove)
        if "shallow_attention" in names:
            shallow = _shallow(model.model.vision_tower)
            for name, part in (("shallow queries", shallow.q_proj), ("shallow keys", shallow.k_proj)):
                hooks.callback(part.register_forward_hook(_keep_output(seen, name)).remove)
        output = run()
    signals: dict[SignalName, Tensor] = {}
    if "features" in names:
        signals["features"] = seen["features"]
    if names - {"features"}:
        first = int(drop_first)
        queries, keys = (_by_head(seen[name], attention) for name in ("queries", "keys"))
        if "keys" in names:
            signals["keys"] = keys.mean(2)[:, first:]
        if "cls_attention" in names and hasattr(model.model.vision_tower.embeddings, "class_embedding"):
            signals["cls_attention"] = _weights(queries[:, :1], keys, attention.scale)[:, 0, first:]
        if "received_attention" in names:
            signals["received_attention"] = _received(queries, keys, attention.scale)[:, first:]
        if "shallow_attention" in names:
            queries, keys = (_by_head(seen[f"shallow {name}"], shallow) for name in ("queries", "keys"))
            signals["shallow_attention"] = _received(queries, keys, shallow.scale)[:, first:]
    return output, signals


def _layers(tower: nn.Module) -> Any:
    layers = getattr(getattr(tower, "encoder", None), "layers", None)
    if layers is None or not hasattr(layers[0], "self_attn"):
        raise ValueError(
            f"{type(tower).__name__} has no encoder.layers with self_attn, its attention cannot be captured"
        )
    return layers


def _shallow(tower: nn.Module) -> Any:
    layers = _layers(tower)
    return layers[max(1, round(len(layers) * 3 / 8)) - 1].self_attn


def _by_head(rows: Float[Tensor, "I P D"], attention: Any) -> Float[Tensor, "I P H d"]:
    return rows.view(*rows.shape[:2], attention.num_heads, -1)


def _attention(tower: nn.Module, feature_layer: int | list[int]) -> Any:
    layers = _layers(tower)
    state = feature_layer if isinstance(feature_layer, int) else feature_layer[-1]
    state = state if state >= 0 else len(layers) + 1 + state
    if not 1 <= state <= len(layers):
        raise ValueError(f"vision_feature_layer is {feature_layer}, which no attention layer of {len(layers)} puts out")
    return layers[state - 1].self_attn  # hidden state 0 is the embeddings


def _keep_output(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        seen[name] = output.detach()

    return hook


def _keep_input(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, args: Any) -> None:
        seen[name] = args[0].detach()

    return hook


def _weights(queries: Float[Tensor, "I Q H d"], keys: Float[Tensor, "I P H d"], scale: float) -> Float[Tensor, "I Q P"]:
    """Softmax attention, mean over heads."""
    accurate = torch.promote_types(queries.dtype, torch.float32)
    logits = torch.einsum("iqhd,iphd->ihqp", queries, keys) * scale
    return logits.to(accurate).softmax(-1).mean(1)


def _received(queries: Float[Tensor, "I P H d"], keys: Float[Tensor, "I P H d"], scale: float) -> Float[Tensor, "I P"]:
    """What every token receives, mean over heads and queries, without the whole matrix at once."""
    chunks = [_weights(part, keys, scale).sum(1) for part in torch.split(queries, QUERIES_AT_ONCE, 1)]
    return torch.stack(chunks).sum(0) / queries.shape[1]
