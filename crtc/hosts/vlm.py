"""Stock vision-language models in: a prompt with images or videos becomes `Tokens`.

Nothing inside the model is touched. A prompt is ids with one placeholder per visual token plus as many feature rows, so
compressing it means encoding with the model's own tower, choosing or merging rows, and deleting as many placeholders.

Letters: B prompts, L columns of the padded prompts, S columns of the shortened ones.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from crtc.hosts.family import Modality, check_model, modalities, own_positions, padding_id, turns_in_space
from crtc.hosts.grid import flat_places, turned_places
from crtc.hosts.signals import capture
from crtc.hosts.visual import Visual, arguments, has_pixels, named, readable, units
from crtc.tokens import CONTEXT, IMAGE, TEXT, VIDEO, SignalName, Signals, Tokens

KINDS = {"image": IMAGE, "video": VIDEO}


@dataclass(frozen=True)
class Encoded:
    """A batch of prompts whose images went through the tower; plan and shorten it as often as you like.

    Args:
        tokens: what a method sees; token i stands in row `tokens.sequence[i]` of the prompts.
        column: the column where each token stands.
        inputs: the other model inputs, without pixels and with an explicit attention mask.
        model: the host, for its masks and its padding id.
        visuals: the rows of images and of videos.
    """

    tokens: Tokens
    column: Int[Tensor, " N"]
    inputs: dict[str, Any]
    model: Any
    visuals: tuple[Visual, ...]


def encode(
    model: nn.Module,
    inputs: Mapping[str, Any],
    signals: Iterable[SignalName] = frozenset(),
    image_of: Int[Tensor, " U"] | None = None,
    signal_layer: int | None = None,
) -> Encoded:
    """Run images and videos through tower and projector, once, and lay the prompts out as tokens.

    A group is an unbroken run of one image's, or one tile's, tokens, or a whole clip.

    Args:
        model: a stock vision-language model.
        inputs: what the processor gave: `input_ids`, `attention_mask`, and pixels or `mm_encoder_outputs`.
        signals: what to capture on the way; a signal that cannot be had (no [CLS] in the tower, a projector that mixes
            all patches, or images already encoded) stays absent.
        image_of: for every image in the prompts, in order, its place among the encoded ones; several prompts can so ask
            about an image that is encoded once. An image is what the model's feature function gives as one: for some
            families a tile, or all images of a prompt. In order without.
        signal_layer: attention layer of the tower whose attention and keys are captured; the one before the projector
            without.

    Raises:
        ValueError: if the model is not supported, there are no images, pixels are not finite, or images and
            placeholders do not match.
    """
    host = check_model(model)
    inputs = _beside(host, named(inputs))
    ids = inputs.get("input_ids")
    if ids is None:
        raise ValueError("input_ids is missing, expected ids with image placeholders")
    mask = _mask(host, ids, inputs.get("attention_mask"))
    row, column = mask.bool().nonzero(as_tuple=True)
    there = {name: ids[row, column] == getattr(host.config, f"{name}_token_id") for name in modalities(host)}
    if not any(bool(here.any()) for here in there.values()):
        ids_of = ", ".join(f"{name} token {getattr(host.config, f'{name}_token_id')}" for name in there)
        raise ValueError(f"no {ids_of} in input_ids, expected prompts with images")

    visible = torch.stack(list(there.values())).any(0)
    text = host.get_input_embeddings()(ids[row, column].masked_fill(visible, 0))  # placeholders may be past the table
    shown = [_look(host, name, inputs, there[name], signals, image_of, signal_layer) for name in there]
    looks = [look for look in shown if look is not None]
    x, kind = text, torch.full_like(row, TEXT)
    unit, clip = torch.zeros_like(row), torch.zeros_like(row)
    for look in looks:
        place = look.visual.place
        kind[place], unit[place] = KINDS[look.visual.modality], look.unit
        x = x.index_put((place,), readable(host, look.visual.output).to(x.device, x.dtype)[look.visual.source])
        clip[place] = look.clip
    group = _groups(kind, row, column, clip)
    rest = {name: value for name, value in inputs.items() if name not in _used(host, inputs)}
    if turns_in_space(host) and rest.get("position_ids") is None:
        grids = inputs.get("image_grid_thw")
        shared = {} if image_of is None or grids is None else {"image_grid_thw": grids[image_of.to(grids.device)]}
        rest["position_ids"] = own_positions(host, {**inputs, **shared}, mask)
    grid = row.new_full((len(row), 3), -1)
    for look in looks:
        place = look.visual.place
        grid[place] = (
            turned_places(rest["position_ids"], row[place], column[place], group[place])
            if turns_in_space(host) and rest["position_ids"].ndim == 3
            else flat_places(host, inputs, unit[place], group[place], video=look.visual.modality == "video")
        )
    tokens = Tokens(x, kind, row, group, grid, _bag(looks, len(row)))
    return Encoded(tokens, column, {**rest, "attention_mask": mask}, host, tuple(look.visual for look in looks))


def _beside(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs on the device of the embeddings, as `generate` puts them."""
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":  # weights that come only when they are called for
        return dict(inputs)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


@dataclass(frozen=True)
class _Look:
    """One modality of the prompts: its rows, the image or clip of each placeholder twice, and captured signals."""

    visual: Visual
    unit: Int[Tensor, " P"]
    """Number among the encoded."""
    clip: Int[Tensor, " P"]
    """Number in the order of the prompts."""
    signals: dict[SignalName, Tensor]


def _look(
    model: Any,
    name: Modality,
    inputs: Mapping[str, Any],
    here: Bool[Tensor, " N"],
    signals: Iterable[SignalName],
    image_of: Int[Tensor, " U"] | None,
    signal_layer: int | None,
) -> _Look | None:
    """What the feature function of a modality gives, laid beside its placeholders; None where there is neither."""
    given = arguments(model, name, inputs)
    output = (inputs.get("mm_encoder_outputs") or {}).get(name)
    captured: dict[SignalName, Tensor] = {}
    if output is None and not has_pixels(given):
        if bool(here.any()):
            raise ValueError(f"{name} tokens in input_ids, but no pixels of them, expected at least one {name}")
        return None
    if output is None:
        output, captured = capture(model, name, given, signals, signal_layer=signal_layer)
    lengths = torch.tensor([len(unit) for unit in units(output)], device=here.device)
    order = torch.arange(len(lengths)) if image_of is None or name != "image" else image_of
    order = order.to(here.device)
    if order.ndim != 1 or bool(((order < 0) | (order >= len(lengths))).any()):
        raise ValueError(f"image_of is {order.tolist()}, expected numbers of {len(lengths)} images")
    every = int((inputs["input_ids"] == getattr(model.config, f"{name}_token_id")).sum())
    if not every == int(here.sum()) == int(lengths[order].sum()):
        raise ValueError(
            f"{every} {name} tokens in input_ids, {int(here.sum())} of them attended, but "
            f"{len(order)} {name}s of {int(lengths[order].sum())} rows"
        )
    clip = torch.arange(len(order), device=here.device).repeat_interleave(lengths[order])
    start = (lengths.cumsum(0) - lengths)[order]  # first row of each image among all rows
    first = lengths[order].cumsum(0) - lengths[order]
    source = start[clip] + torch.arange(every, device=here.device) - first[clip]
    return _Look(Visual(name, output, source, here.nonzero()[:, 0]), order[clip], clip, captured)


def _groups(
    kind: Int[Tensor, " N"], row: Int[Tensor, " N"], column: Int[Tensor, " N"], clip: Int[Tensor, " N"]
) -> Int[Tensor, " N"]:
    """Numbers of the groups: runs of one image's tokens; whole clips, even where words stand between their frames, or
    each frame was encoded alone.
    """
    inside = (kind != TEXT).nonzero()[:, 0]
    begins = torch.ones_like(inside, dtype=torch.bool)
    owner, gap = clip[inside].diff() != 0, column[inside].diff() != 1
    image = kind[inside][1:] == IMAGE
    begins[1:] = (kind[inside].diff() != 0) | (row[inside].diff() != 0) | torch.where(image, owner | gap, owner & gap)
    return torch.full_like(kind, CONTEXT).index_put((inside,), begins.long().cumsum(0) - 1)


def _bag(looks: list[_Look], num: int) -> Signals:
    """The signals that every modality in the prompts gave."""
    names = set.intersection(*[set(look.signals) for look in looks]) if looks else set()
    bag = {}
    for name in names:
        rows = [look.signals[name].to(look.visual.source.device)[look.visual.source] for look in looks]
        full = rows[0].new_zeros(num, *rows[0].shape[1:])
        for look, own in zip(looks, rows, strict=True):
            full = full.index_put((look.visual.place,), own)
        bag[name] = full
    return Signals(**bag)


def _used(model: Any, inputs: Mapping[str, Any]) -> set[str]:
    """Inputs that only feature functions read."""
    return {"mm_encoder_outputs"}.union(*(arguments(model, name, inputs) for name in modalities(model)))


def _mask(model: Any, ids: Int[Tensor, "B L"], mask: Tensor | None) -> Tensor:
    if mask is None:
        if bool((ids[:, [0, -1]] == padding_id(model)).any()):
            raise ValueError(f"attention_mask is missing, but input_ids holds padding {padding_id(model)}")
        return torch.ones_like(ids)
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask is {tuple(mask.shape)}, expected {tuple(ids.shape)} as input_ids")
    return mask
