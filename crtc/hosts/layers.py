"""Layers of a stock language model: which can lose tokens on the way, and what each tells of its tokens."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from packaging.version import Version
from torch import Tensor, nn

from crtc.hosts.attention import Attended, attention_layers
from crtc.hosts.mass import IMPLEMENTATIONS, other_layers
from crtc.hosts.vlm import Encoded
from crtc.tokens import LayerSignalName, SignalName, Signals

UNSUPPORTED = {"gemma4", "llama4"}
"""Later layers of the one read keys of earlier ones, and a table of ids; of the other, chunks of positions."""


def decoder_layers(model: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Layers of the language model with their attention, in order.

    Raises:
        ValueError: if tokens cannot leave between its layers: it carries a state over them, shares keys between
            layers, has attention that reads no additive mask, or its layers are on several devices.
    """
    name, config = type(model).__name__, model.get_decoder().config.get_text_config()
    if other := other_layers(model):
        raise ValueError(f"{name} has layers of {', '.join(other)}, through which no token can leave")
    if model.config.model_type in UNSUPPORTED:  # family: Gemma 4, Llama 4
        raise ValueError(f"{name} is not supported inside its language model, expected a method that acts before it")
    if config._attn_implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation is {config._attn_implementation!r}, "
            f"a method inside the language model needs one of {', '.join(IMPLEMENTATIONS)}"
        )
    layers = shown_layers(model)
    places = {str(one.device) for layer, _ in layers for one in layer.parameters()} - {"meta"}
    if len(places) > 1:
        raise ValueError(f"layers of {name} are on {', '.join(sorted(places))}, expected all of them on one device")
    recomputed = any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer, _ in layers)
    if recomputed and Version(transformers.__version__) < Version("5.23"):
        raise ValueError(
            f"{name} recomputes its layers for the gradient, and transformers {transformers.__version__} runs hooks "
            "again then, expected 5.23 or newer, or no gradient checkpointing"
        )
    return layers


def shown_layers(model: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Layers of the language model with their attention, in order; raises `ValueError` unless these are all."""
    decoder = model.get_decoder()
    layers, depth = attention_layers(decoder), decoder.config.get_text_config().num_hidden_layers
    if len(layers) != depth:
        raise ValueError(f"{type(model).__name__} shows {len(layers)} of its {depth} layers, expected all of them")
    return layers


def check_deepstack(encoded: Encoded, layers: Sequence[int]) -> None:
    """Raise `ValueError` if visual rows are still to be added to tokens behind the first of `layers`."""
    for visual in encoded.visuals:
        deep = getattr(visual.output, "deepstack_features", None) or ()
        last = max((one[0] if isinstance(one[0], int) else place for place, one in enumerate(deep)), default=-1)
        if last >= layers[0]:
            raise ValueError(
                f"tokens would leave in front of layer {layers[0]}, but {type(encoded.model).__name__} adds visual "
                f"features in layer {last}, expected a layer behind it"
            )


def window_of(model: Any, layer: int) -> int | None:
    """How many columns a query of a layer sees at the most, None if all."""
    config = model.get_decoder().config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and kinds[layer] != "sliding_attention"):
        return None
    if kinds is None and getattr(config, "use_sliding_window", True) is False:
        return None
    return int(window)


def layer_signals(
    model: Any,
    names: Iterable[SignalName],
    call: Attended,
    turn: Any,
    x: Float[Tensor, "N D"],
    embeddings: Float[Tensor, "N D"],
    row: Int[Tensor, " N"],
    place: Int[Tensor, " N"],
) -> Signals:
    """What a layer tells of some tokens; signals that it cannot tell stay absent.

    Args:
        model: the host.
        names: of signals.
        call: of the layer's attention.
        turn: cosine and sine of the call's rotation, if it has one.
        x: hidden states in front of the layer that plans.
        embeddings: what the first layer reads.
        row: of every token in the call.
        place: of every token in the call.
    """
    wanted = set(names)
    found: dict[LayerSignalName, Tensor] = {}
    queries, keys = call.queries[row, :, place], call.keys[row, :, place]
    found["layer_queries"], found["layer_keys"] = queries * call.scale, keys
    if isinstance(turn, tuple) and wanted & {"plain_queries", "plain_keys"} and turn[0].ndim == 3:
        cosine, sine = (one.expand(len(call.queries), -1, -1)[row, place][:, None] for one in turn)
        found["plain_queries"] = turned_back(queries, cosine, sine) * call.scale
        found["plain_keys"] = turned_back(keys, cosine, sine)
    norm = getattr(model.get_decoder(), "norm", None)
    if "normed_states" in wanted and isinstance(norm, nn.Module):
        found["normed_states"] = norm(x)
    found["embeddings"] = embeddings
    return Signals(**{name: value.detach() for name, value in found.items() if name in wanted})


def turned_back(
    x: Float[Tensor, "N H d"], cosine: Float[Tensor, "N 1 r"], sine: Float[Tensor, "N 1 r"]
) -> Float[Tensor, "N H d"]:
    """Queries or keys before a rotation that pairs channel i with channel i + r / 2 of the first r."""
    width = cosine.shape[-1]
    head, tail = x[..., :width], x[..., width:]
    first, second = head.chunk(2, -1)
    swapped = torch.cat([second, -first], -1)
    return torch.cat([(head * cosine + swapped * sine) / (cosine.square() + sine.square()), tail], -1)
