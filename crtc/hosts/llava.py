"""Stock LLaVA in and out: a prompt with images becomes `Tokens`, a `Plan` becomes a legal shorter prompt.

Nothing inside the model is touched. A prompt is ids with one placeholder per visual token plus as many feature rows, so
compressing it means encoding with the model's own tower, choosing or merging rows, and deleting as many placeholders.

Letters: B prompts, L columns of the padded prompts, S columns of the shortened ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from crtc.hosts.mass import additive_mask, check_attention, masked
from crtc.hosts.signals import capture
from crtc.tokens import CONTEXT, IMAGE, TEXT, Plan, SignalName, Signals, Tokens, apply

Positions = Literal["repack", "keep"]
"""Position ids of a shortened prompt: numbered anew without gaps, or those of the full prompt."""
VISION_ARGUMENTS = ("vision_feature_layer", "vision_feature_select_strategy", "image_sizes")
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Encoded:
    """A batch of prompts whose images went through the tower; plan and shorten it as often as you like.

    Args:
        tokens: what a method sees; token i stands in row `tokens.sequence[i]` of the prompts.
        column: the column where each token stands.
        inputs: the other model inputs, without pixels and with an explicit attention mask.
        model: the host, for its attention implementation and its padding id.
    """

    tokens: Tokens
    column: Int[Tensor, " N"]
    inputs: dict[str, Any]
    model: LlavaForConditionalGeneration


def encoder_outputs(images: Sequence[Float[Tensor, "P D"]]) -> dict[str, BaseModelOutputWithPooling]:
    """Visual rows as `mm_encoder_outputs` takes them: one entry per image, which generate repeats for beams."""
    return {"image": BaseModelOutputWithPooling(pooler_output=list(images))}  # type: ignore[arg-type]


def check_model(model: object) -> LlavaForConditionalGeneration:
    """`model` itself, if it is a stock LLaVA; `ValueError` otherwise."""
    if not isinstance(model, LlavaForConditionalGeneration):
        raise ValueError(f"{type(model).__name__} is not supported, expected LlavaForConditionalGeneration")
    return model


def encode(
    model: nn.Module,
    inputs: Mapping[str, Any],
    signals: Iterable[SignalName] = frozenset(),
    image_of: Int[Tensor, " G"] | None = None,
) -> Encoded:
    """Run the images through tower and projector, once, and lay the prompts out as tokens.

    Args:
        model: a `LlavaForConditionalGeneration`.
        inputs: what the processor gave: `input_ids`, `attention_mask`, and `pixel_values` or `mm_encoder_outputs`.
        signals: what to capture on the way; a signal that cannot be had (no [CLS] in the tower, or images already
            encoded) stays absent.
        image_of: for every image in the prompts, in order, its row in `pixel_values`; several prompts can so ask about
            an image that is encoded once. In order without.

    Raises:
        ValueError: if the model is no stock LLaVA, there are no images, pixels are not finite, or images and
            placeholders do not match.
    """
    model = check_model(model)
    ids = inputs.get("input_ids")
    if ids is None:
        raise ValueError("input_ids is missing, expected ids with image placeholders")
    mask = inputs.get("attention_mask")
    if mask is None:
        if bool((ids[:, [0, -1]] == _padding_id(model)).any()):
            raise ValueError(f"attention_mask is missing, but input_ids holds padding {_padding_id(model)}")
        mask = torch.ones_like(ids)
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask is {tuple(mask.shape)}, expected {tuple(ids.shape)} as input_ids")
    row, column = mask.bool().nonzero(as_tuple=True)
    is_image = ids[row, column] == model.config.image_token_id
    if not bool(is_image.any()):
        raise ValueError(f"no image token {model.config.image_token_id} in input_ids, expected prompts with images")

    images, captured = _images(model, inputs, signals)
    sizes = torch.tensor([len(image) for image in images], device=ids.device)
    order = torch.arange(len(images)) if image_of is None else image_of
    order = order.to(ids.device)
    if order.ndim != 1 or bool(((order < 0) | (order >= len(images))).any()):
        raise ValueError(f"image_of is {order.tolist()}, expected numbers of {len(images)} images")
    placeholders, expected = int((ids == model.config.image_token_id).sum()), int(sizes[order].sum())
    if not placeholders == int(is_image.sum()) == expected:
        raise ValueError(
            f"{placeholders} image tokens in input_ids, {int(is_image.sum())} of them attended, but "
            f"{len(order)} images of {expected} rows"
        )

    group = torch.full_like(row, CONTEXT)
    group[is_image] = torch.arange(len(order), device=ids.device).repeat_interleave(sizes[order])
    start = (sizes.cumsum(0) - sizes)[order]  # first row of each image among all rows
    place = torch.arange(expected, device=ids.device) - (sizes[order].cumsum(0) - sizes[order])[group[is_image]]
    source = start[group[is_image]] + place

    text = model.get_input_embeddings()(ids[row, column])
    where = is_image.nonzero()[:, 0]
    x = text.index_put((where,), torch.cat(images)[source].to(text.device, text.dtype))
    grid = row.new_full((len(row), 3), -1)
    grid[where] = torch.cat([_grid(model, inputs, len(image)) for image in images]).to(grid.device)[source]
    spread = {name: signal.flatten(0, 1).to(x.device)[source] for name, signal in captured.items()}
    bag = {
        name: signal.new_zeros(len(row), *signal.shape[1:]).index_put((where,), signal)
        for name, signal in spread.items()
    }
    tokens = Tokens(x, torch.where(is_image, IMAGE, TEXT), row, group, grid, Signals(**bag))
    gone = {"pixel_values", "mm_encoder_outputs", *VISION_ARGUMENTS}
    rest = {name: value for name, value in inputs.items() if name not in gone}
    return Encoded(tokens, column, {**rest, "attention_mask": mask}, model)


def _images(
    model: LlavaForConditionalGeneration, inputs: Mapping[str, Any], signals: Iterable[SignalName]
) -> tuple[list[Float[Tensor, "P D"]], dict[SignalName, Tensor]]:
    """Projected rows of every image, and signals `[images, P, ...]`."""
    encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
    pixels = inputs.get("pixel_values")
    if encoded is not None:
        return list(encoded.pooler_output), {}
    if pixels is None or len(pixels) == 0:
        raise ValueError(f"pixel_values is {pixels}, expected at least one image")
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError("pixel_values holds NaN or infinity, expected finite pixels")
    chosen = {name: inputs[name] for name in VISION_ARGUMENTS if inputs.get(name) is not None}
    strategy = chosen.get("vision_feature_select_strategy", model.config.vision_feature_select_strategy)
    output, captured = capture(
        model,
        lambda: model.model.get_image_features(pixel_values=pixels, return_dict=True, **chosen),
        signals,
        feature_layer=chosen.get("vision_feature_layer", model.config.vision_feature_layer),
        drop_first=strategy == "default",
    )
    return list(output.pooler_output), captured


def _grid(model: LlavaForConditionalGeneration, inputs: Mapping[str, Any], num_rows: int) -> Int[Tensor, "P 3"]:
    """Time, row and column of the rows of an image; -1 for a leading [CLS], and for all where the shape is unknown."""
    config: Any = model.config.vision_config
    pixels = inputs.get("pixel_values")
    height, width = (config.image_size, config.image_size) if pixels is None else pixels.shape[-2:]
    rows, columns = height // config.patch_size, width // config.patch_size
    leading = num_rows - rows * columns
    if leading not in (0, 1):
        return torch.full((num_rows, 3), -1)
    places = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(rows), torch.arange(columns))
    return torch.cat([torch.full((leading, 3), -1), places])


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
            attention mask is then 4-D, unless all sizes are one.
        positions: whether positions are numbered anew or kept. Numbering anew refuses given `position_ids`.
        rows: content of the slots in the place of `apply(plan, x)`, as training through a soft choice needs it.

    Raises:
        ValueError: if the plan is of other tokens, rows have another shape, or the attention implementation cannot
            take mass.
    """
    order = columns(encoded, plan)
    ids = encoded.inputs["input_ids"]
    fills = {"input_ids": _padding_id(encoded.model), "labels": IGNORED_LABEL}
    position_ids = _position_ids(encoded, positions)
    full = encoded.inputs if position_ids is None else {**encoded.inputs, "position_ids": position_ids}
    inputs = dict(full)
    for name, value in full.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            inputs[name] = _rearrange(value, order, fills.get(name, 0))
    if position_ids is not None:  # padding is numbered by its column, as the model itself would
        column = torch.arange(order.shape[1], device=order.device)
        inputs["position_ids"] = inputs["position_ids"].where(order >= 0, column)
    if rows is None:
        rows = apply(plan, encoded.tokens.x)
    if rows.shape != (len(plan.kept), encoded.tokens.x.shape[1]):
        raise ValueError(f"rows is {tuple(rows.shape)}, expected {(len(plan.kept), encoded.tokens.x.shape[1])}")
    inputs["mm_encoder_outputs"] = encoder_outputs(torch.split(rows, plan.num_kept.tolist()))
    bias = _bias(encoded, plan, order) if mass else None
    if bias is not None:
        inputs["attention_mask"] = additive_mask(
            inputs["attention_mask"].bool(), bias, encoded.tokens.x.dtype, num_queries=order.shape[1]
        )
    return inputs


@torch.no_grad()
def generate(encoded: Encoded, plan: Plan, *, mass: bool, positions: Positions, **options: Any) -> Any:
    """Stock `model.generate` on shortened prompts, answering with the full prompts in front of the new tokens.

    With mass, the bias stays with the cached columns at every decoding step; beams, several answers per prompt, a
    static cache and prefilling in chunks work. `max_length` and `min_length` count the full prompt.

    Args:
        encoded: the prompts.
        plan: what becomes of their visual tokens.
        mass: as for `shorten`.
        positions: as for `shorten`.
        options: of `model.generate`.

    Raises:
        ValueError: as `shorten`, or if a cache that already holds tokens is given.
    """
    model: Any = encoded.model
    ids = encoded.inputs["input_ids"]
    if (cache := options.get("past_key_values")) is not None and int(cache.get_seq_length()):
        raise ValueError(f"past_key_values holds {int(cache.get_seq_length())} tokens, expected an empty cache")
    order = columns(encoded, plan)
    bias = _bias(encoded, plan, order) if mass else None
    if positions == "keep" and encoded.inputs.get("position_ids") is None:
        counted = (encoded.inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)  # as generate counts itself
        encoded = Encoded(encoded.tokens, encoded.column, {**encoded.inputs, "position_ids": counted}, model)
    inputs = {**shorten(encoded, plan, mass=False, positions=positions), **options}
    for name in ("max_length", "min_length"):
        if inputs.get(name) is not None:
            inputs[name] -= ids.shape[1] - order.shape[1]
    if bias is not None:
        inputs["disable_compile"] = True  # a compiled decoding step would not see our hook
    with masked(model, order >= 0, bias):
        output = model.generate(**inputs)
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompt = ids.repeat_interleave(len(sequences) // len(ids), 0).to(sequences.device)
    sequences = torch.cat([prompt, sequences[:, order.shape[1] :]], 1)
    if isinstance(output, Tensor):
        return sequences
    output["sequences"] = sequences
    return output


def _rearrange(full: Tensor, order: Int[Tensor, "B S"], fill: int) -> Tensor:
    return full.gather(1, order.clamp(min=0)).masked_fill(order < 0, fill)


def _bias(encoded: Encoded, plan: Plan, order: Int[Tensor, "B S"]) -> Float[Tensor, "B S"] | None:
    """log(size) of every column; None where all sizes are one, so that the model runs as it would anyway."""
    check_attention(encoded.model)
    if bool((plan.size <= 0).any()):
        raise ValueError(f"size of a kept token is {float(plan.size.min())}, expected at least 1")
    if not plan.size.requires_grad and bool((plan.size == 1).all()):
        return None
    tokens = encoded.tokens
    log = plan.size.to(torch.promote_types(tokens.x.dtype, torch.float32)).log()
    full = log.new_zeros(encoded.inputs["input_ids"].shape)
    full = full.index_put((tokens.sequence[plan.kept], encoded.column[plan.kept]), log)
    return _rearrange(full, order, 0)


def _position_ids(encoded: Encoded, positions: Positions) -> Int[Tensor, "B L"] | None:
    """Positions of the full prompts where they are to be kept; None leaves the numbering to the model."""
    given, ids = encoded.inputs.get("position_ids"), encoded.inputs["input_ids"]
    if positions not in get_args(Positions):
        raise ValueError(f"positions is {positions!r}, expected one of {get_args(Positions)}")
    if positions == "keep":
        counted = torch.arange(ids.shape[1], device=ids.device) if given is None else given
        return counted.expand_as(ids)
    if given is not None:
        raise ValueError("position_ids is given, but positions='repack' numbers anew, expected positions='keep'")
    return None


def _padding_id(model: LlavaForConditionalGeneration) -> int:
    text: Any = model.config.text_config
    known = (text.pad_token_id, model.generation_config.pad_token_id)
    return int(next((number for number in known if number is not None), 0))
