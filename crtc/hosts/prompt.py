"""A `Plan` becomes a legal shorter prompt: fewer placeholders in every tensor of the inputs, as many feature rows."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from crtc.hosts.family import first_position, padding_id
from crtc.hosts.mass import biased_masks, check_attention
from crtc.hosts.positions import Positions, check_positions, rearranged, shortened_positions
from crtc.hosts.vlm import Encoded
from crtc.tokens import Plan, apply

IGNORED_LABEL = -100


def encoder_outputs(images: Sequence[Float[Tensor, "P D"]]) -> dict[str, BaseModelOutputWithPooling]:
    """Visual rows as `mm_encoder_outputs` takes them: one entry per image, which generate repeats for beams."""
    return {"image": BaseModelOutputWithPooling(pooler_output=list(images))}  # type: ignore[arg-type]


def columns(encoded: Encoded, plan: Plan) -> Int[Tensor, "B S"]:
    """For every column of the shortened prompts its column in the full ones, -1 where padded.

    Rows are padded on the side where the prompts were, left where they had no padding, as `generate` wants it.

    Raises:
        ValueError: if the plan was made for other tokens.
    """
    tokens, mask = encoded.tokens, encoded.inputs["attention_mask"].bool()
    if not torch.equal(plan.group, tokens.group):
        raise ValueError(f"the plan is of {len(plan.group)} other tokens, expected one of these {len(tokens)}")
    stays = ~tokens.candidates
    stays[plan.kept] = True
    row = tokens.sequence[stays]
    length = torch.bincount(row, minlength=len(mask))
    # columns that are padding in every row stay, so that keeping everything changes no shape
    width = mask.shape[1] - int(mask.sum(1).max()) + int(length.max())
    place = torch.arange(len(row), device=row.device) - (length.cumsum(0) - length)[row]
    if bool(mask[:, -1].all()):
        place = place + (width - length)[row]
    order = row.new_full((len(mask), width), -1)
    order[row, place] = encoded.column[stays]
    return order


def shorten(
    encoded: Encoded, plan: Plan, *, mass: bool, positions: Positions, rows: Float[Tensor, "K D"] | None = None
) -> dict[str, Any]:
    """The inputs of a plain `model(**inputs)` call on shorter prompts; differentiable through the rows.

    Logits come back as short as the prompts, `columns` maps them back; labels are shortened alike. Ids and merged rows
    without mass also suit `generate`, except with `positions="keep"` and `use_cache=False`, see `generate` here.

    Args:
        encoded: the prompts.
        plan: what becomes of their visual tokens.
        mass: whether every layer of the language model adds log(size) to the logits of a merged token's key column. The
            attention mask is then 4-D, or one 4-D mask by kind of layer, unless all sizes are one.
        positions: whether positions are numbered anew or kept.
        rows: content of the slots in the place of `apply(plan, x)`, as training through a soft choice needs it. What
            deeper layers are given besides (deepstack) follows the plan.

    Raises:
        ValueError: if the plan is of other tokens, rows have another shape, or the model cannot take mass.
    """
    order = columns(encoded, plan)
    ids = encoded.inputs["input_ids"]
    fills = {"input_ids": padding_id(encoded.model), "labels": IGNORED_LABEL}
    inputs = dict(encoded.inputs)
    for name, value in encoded.inputs.items():
        if isinstance(value, Tensor) and value.shape[-2:] == ids.shape and name != "position_ids":
            inputs[name] = rearranged(value, order, fills.get(name, 0))
    position_ids = _positions(encoded, plan, order, positions)
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    content = apply(plan, encoded.tokens.x) if rows is None else rows
    expected = (len(plan.kept), encoded.tokens.x.shape[1])
    if content.shape != expected:
        raise ValueError(f"rows is {tuple(content.shape)}, expected {expected}")
    if rows is not None and not all(visual.in_space for visual in encoded.visuals):
        raise ValueError(f"rows are given, but {type(encoded.model).__name__} does not read its features as embeddings")
    inputs["mm_encoder_outputs"] = {
        visual.modality: visual.shortened(plan, content, encoded.tokens.sequence) for visual in encoded.visuals
    }
    bias = column_bias(encoded, plan, order) if mass else None
    if bias is not None:
        inputs["attention_mask"] = biased_masks(encoded.model, inputs, bias)
    return inputs


def column_bias(encoded: Encoded, plan: Plan, order: Int[Tensor, "B S"]) -> Float[Tensor, "B S"] | None:
    """log(size) of every column; None where all sizes are one, so that the model runs as it would anyway.

    Raises:
        ValueError: if the model cannot take mass, or a size is not positive.
    """
    check_attention(encoded.model)
    if bool((plan.size <= 0).any()):
        raise ValueError(f"size of a kept token is {float(plan.size.min())}, expected at least 1")
    if not plan.size.requires_grad and bool((plan.size == 1).all()):
        return None
    tokens = encoded.tokens
    log = plan.size.to(torch.promote_types(tokens.x.dtype, torch.float32)).log()
    full = log.new_zeros(encoded.inputs["input_ids"].shape)
    full = full.index_put((tokens.sequence[plan.kept], encoded.column[plan.kept]), log)
    return full.gather(1, order.clamp(min=0)).masked_fill(order < 0, 0)


def _positions(
    encoded: Encoded, plan: Plan, order: Int[Tensor, "B S"], positions: Positions
) -> Int[Tensor, "*rest B S"] | None:
    """Positions of the short prompts; None leaves the numbering to the model."""
    check_positions(positions)
    mask, given = encoded.inputs["attention_mask"], encoded.inputs.get("position_ids")
    if len(plan.kept) == int(encoded.tokens.candidates.sum()):
        return given  # nothing goes, so nothing moves, padding included
    if given is None:
        if positions == "repack":
            return None
        given = first_position(encoded.model) + torch.arange(mask.shape[1], device=mask.device)[None]
    full = given.expand(*given.shape[:-2], *mask.shape)
    return shortened_positions(full, mask.bool(), order, positions)
