"""Where in its picture each visual token lies, as far as a family's inputs tell."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from crtc.hosts.family import has_places


def turned_places(
    positions: Int[Tensor, "C B L"], row: Int[Tensor, " P"], column: Int[Tensor, " P"], group: Int[Tensor, " P"]
) -> Int[Tensor, "P 3"]:
    """Time, row and column as M-RoPE positions have them, counted from the first of every unbroken run.

    Frames that text stands between are one time step each.

    Args:
        positions: of the full prompts, time, row and column last.
        row: prompt of every visual token.
        column: of every visual token.
        group: of every visual token, ascending.
    """
    own = positions[-3:, row, column].T.long()
    new_group, run = _starts(group), _starts(group, row, column - torch.arange(len(column), device=column.device))
    start = own.new_full((int(run.max()) + 1, 3), int(own.max()))
    start = start.scatter_reduce(0, run[:, None].expand_as(own), own, "amin")
    place = own - start[run]
    first_run = run.new_full((int(new_group.max()) + 1,), len(run)).scatter_reduce(0, new_group, run, "amin")
    place[:, 0] += run - first_run[new_group]
    return place


def flat_places(
    model: Any, inputs: Mapping[str, Any], unit: Int[Tensor, " P"], group: Int[Tensor, " P"], *, video: bool
) -> Int[Tensor, "P 3"]:
    """Time, row and column of tokens that lie row by row; -1 for a leading [CLS], and where the shape is not known.

    Args:
        model: the host.
        inputs: the sizes of images, or the pixels, tell the shape.
        unit: the encoded image or clip of every visual token.
        group: of every visual token, ascending.
        video: whether these are clips.
    """
    lengths = torch.bincount(_starts(group)).tolist()
    if not has_places(model):
        return unit.new_full((len(unit), 3), -1)
    begins = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    owners = unit[begins.to(unit.device)].tolist()
    frames = _frames(inputs) if video else 1
    parts = [_clip(length, frames, _shape(inputs, owner)) for length, owner in zip(lengths, owners, strict=True)]
    return torch.cat(parts).to(unit.device)


def _starts(*keys: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
    """Number of the stretch in which all keys are constant."""
    changes = torch.stack([key.diff() != 0 for key in keys]).any(0)
    return torch.cat([changes.new_zeros(1), changes]).long().cumsum(0)


def _frames(inputs: Mapping[str, Any]) -> int:
    pixels = inputs.get("pixel_values_videos")
    return int(pixels.shape[1]) if pixels is not None and pixels.ndim == 5 else 1


def _shape(inputs: Mapping[str, Any], unit: int) -> Sequence[int]:
    """Height and width of an image in any unit; square where nothing tells."""
    for name in ("image_sizes", "spatial_shapes"):  # family: LFM2-VL
        if inputs.get(name) is not None:
            return [int(size) for size in inputs[name][unit]]
    pixels = next((value for name, value in inputs.items() if name.startswith("pixel_values")), None)
    return list(pixels.shape[-2:]) if isinstance(pixels, Tensor) and pixels.ndim >= 4 else (1, 1)


def _clip(length: int, frames: int, shape: Sequence[int]) -> Int[Tensor, "L 3"]:
    if length % frames:
        return torch.full((length, 3), -1)
    place = frame(length // frames, shape).repeat(frames, 1)
    time = torch.arange(frames).repeat_interleave(length // frames)
    place[:, 0] = time.where(place[:, 1] >= 0, -1)
    return place


def frame(length: int, shape: Sequence[int]) -> Int[Tensor, "L 3"]:
    """Places of one picture's tokens that lie row by row; -1 for a leading [CLS], or everywhere if no grid fits.

    Args:
        length: number of tokens.
        shape: height and width of the picture in any unit.
    """
    for leading in (0, 1):
        rows = round(((length - leading) * shape[0] / shape[1]) ** 0.5)
        columns = (length - leading) // max(rows, 1)
        if rows * columns == length - leading and rows * shape[1] == columns * shape[0] and columns:
            cells = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(rows), torch.arange(columns))
            return torch.cat([torch.full((leading, 3), -1), cells])
    return torch.full((length, 3), -1)
