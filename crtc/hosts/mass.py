"""Mass preservation in the language model: merged key columns draw as much attention as the tokens they stand for.

Adding log(size) to the logits of a key column makes softmax count it `size` times (ToMe's proportional attention, Bolya
et al. 2023, carried into the language model). Every layer gets the mask that the model makes itself, causal, sliding,
chunked or open within an image, as floats with the bias added: stock attention takes it under sdpa and eager, and flex
attention adds it to the logits inside its fused kernel.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, create_masks_for_generate

from crtc.hosts.family import CACHE, cache_of, takes_masks_by_kind

ADDITIVE = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers whose attention reads a mask of logits."""
IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")
"""Attention that reads a mask of logits."""


def other_layers(model: Any) -> list[str]:
    """Kinds of layers of the language model that read no attention mask, such as those that carry a state."""
    return sorted(set(getattr(model.get_decoder().config.get_text_config(), "layer_types", None) or ()) - ADDITIVE)


def check_attention(model: Any) -> None:
    """Raise `ValueError` unless every layer of the language model takes an additive mask."""
    config = model.get_decoder().config.get_text_config()
    if config._attn_implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation is {config._attn_implementation!r}, "
            f"mass preservation needs one of {', '.join(IMPLEMENTATIONS)}, expected one of these or mass=False"
        )
    if other := other_layers(model):
        raise ValueError(
            f"{type(model).__name__} has layers of {', '.join(other)}, which read no attention mask; "
            "mass preservation needs attention in every layer, expected mass=False"
        )


def biased_masks(model: Any, inputs: Mapping[str, Any], bias: Float[Tensor, "B S"]) -> Any:
    """The attention mask of one call of the model, made by the model, with a bias on the columns of the prompts.

    Args:
        model: the host.
        inputs: of the call: `input_ids` and what masks are made of, such as token types and a cache. A mask that
            `generate` prepared already is taken as it is.
        bias: what is added to the logits of every key column of the prompts; columns behind them have none, rows
            repeated for beams or several answers are recognised by their number.

    Returns:
        [B, 1, Q, C], or one by kind of layer where they differ.

    Raises:
        ValueError: when the number of rows is no multiple of the prompts, the mask that `generate` prepared is a block
            mask, or the model cannot be given masks that differ by kind of layer.
    """
    rows, queries = inputs["input_ids"].shape
    if rows % len(bias):
        raise ValueError(f"the language model got {rows} rows, expected a multiple of {len(bias)} prompts")
    cache, masks = cache_of(inputs), inputs.get("attention_mask")
    config, dtype = model.get_decoder().config.get_text_config(), model.get_input_embeddings().weight.dtype
    if masks is None or (isinstance(masks, Tensor) and masks.ndim == 2):
        masks = _own_masks(model, inputs, masks, dtype)
    kinds = masks if isinstance(masks, dict) else {None: masks}
    if any(mask is not None and not isinstance(mask, Tensor) for mask in kinds.values()):
        raise ValueError(
            "the attention mask was prepared as a block mask, which holds no logits; with flex attention and mass "
            "expected a cache that grows"
        )
    repeated = bias.to(dtype).repeat_interleave(rows // len(bias), 0)
    found = {}
    for kind, mask in kinds.items():
        if kind is not None and kind not in config.layer_types:
            continue  # some models make more kinds of masks than they have layers for
        layer = 0 if kind is None else config.layer_types.index(kind)
        length, offset, start = queries, 0, 0
        if cache is not None:
            length, offset = (int(size) for size in cache.get_mask_sizes(queries, layer))
            start = int(cache.get_seq_length(layer))
        if mask is None:  # the model leaves out a mask that is causal and nothing else
            mask = causal(queries, length, start=start - offset, device=bias.device)
        columns = F.pad(repeated, (0, max(0, offset + length - bias.shape[1])))[:, offset : offset + length]
        found[kind] = added(mask, columns)
    first = next(iter(found.values()))
    if all(torch.equal(mask, first) for mask in found.values()):  # one mask suits every family
        return first
    if not takes_masks_by_kind(model):
        raise ValueError(
            f"{type(model).__name__} takes one mask for all layers, but its window is shorter than the "
            f"{queries} tokens, expected mass=False"
        )
    return found


def causal(queries: int, length: int, *, start: int, device: torch.device) -> Bool[Tensor, "1 1 Q C"]:
    """Which of `length` columns the queries see, the first of which stands in column `start`."""
    column = torch.arange(length, device=device)
    return (column <= start + torch.arange(queries, device=device)[:, None])[None, None]


@contextmanager
def masked(model: Any, valid: Bool[Tensor, "B S"], bias: Float[Tensor, "B S"] | None) -> Iterator[None]:
    """While the context lasts, the model reads some prompts, and what it generates after them, through biased masks.

    The bias stays with the cached key columns. Without a bias the model's own mask stays, only made explicit where
    `generate` left it out: without mask and cache, gaps in positions are read as packed sequences.

    Raises:
        ValueError: when the number of rows is no multiple of the prompts.
    """

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if bias is not None:
            return args, {**kwargs, "attention_mask": biased_masks(model, kwargs, bias)}
        if kwargs.get("attention_mask") is None and cache_of(kwargs) is None:
            kwargs = {**kwargs, "attention_mask": torch.ones_like(kwargs["input_ids"])}
        return args, kwargs

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _own_masks(model: Any, inputs: Mapping[str, Any], mask: Tensor | None, dtype: torch.dtype) -> Any:
    """The masks as `generate` has them made in advance for compiled decoding."""
    rows, queries = inputs["input_ids"].shape
    cache = cache_of(inputs)
    make = getattr(model, "create_masks_for_generate", None)
    config = model.config
    if config.get_text_config()._attn_implementation == "flex_attention":  # makes masks without logits
        config = copy.deepcopy(config)
        config.get_text_config()._attn_implementation = "sdpa"
    told: dict[str, Any] = {
        "inputs_embeds": torch.empty(rows, queries, 0, dtype=dtype, device=inputs["input_ids"].device),
        "attention_mask": mask,
        CACHE: cache,
        "position_ids": None,  # which are read for packed sequences only, and there are none here
    }
    text = config.get_text_config()
    if make is None and (kinds := getattr(text, "layer_types", None)):
        # as create_masks_for_generate, which before transformers 5.20 tells chunked masks what they do not take
        makers: dict[str, Any] = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
        return {kind: makers[kind](config=text, **told) for kind in sorted(set(kinds))}
    return (make or create_masks_for_generate)(
        config=config,
        **told,
        token_type_ids=inputs.get("token_type_ids"),
        mm_token_type_ids=inputs.get("mm_token_type_ids"),
        is_first_iteration=cache is None or not int(cache.get_seq_length()),
    )


def added(mask: Tensor, bias: Float[Tensor, "B C"]) -> Float[Tensor, "B 1 Q C"]:
    """A mask, of logits or of what is seen, with a bias on its key columns."""
    # A padding query sees nothing, and a row of -inf would be NaN. Eager attention takes the softmax in float32.
    lowest = max(torch.finfo(bias.dtype).min, torch.finfo(torch.float32).min)
    if mask.dtype == torch.bool:
        return torch.where(mask, bias[:, None, None], lowest)
    return (mask.clamp(min=lowest) + bias[:, None, None]).clamp(min=lowest)
