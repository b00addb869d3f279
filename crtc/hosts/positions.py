"""Position ids of shortened prompts: those of the full prompt, or numbered anew; the same for M-RoPE."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Positions = Literal["repack", "keep"]
"""Position ids of a shortened prompt: numbered anew without gaps, or those of the full prompt."""


def check_positions(positions: str) -> None:
    """Raise `ValueError` unless `positions` is one of the two words."""
    if positions not in get_args(Positions):
        raise ValueError(f"positions is {positions!r}, expected one of {get_args(Positions)}")


def rearranged(full: Int[Tensor, "*rest B L"], order: Int[Tensor, "B S"], fill: int) -> Int[Tensor, "*rest B S"]:
    """Columns of `full` where `order` says, `fill` where it is negative."""
    index = order.clamp(min=0).expand(*full.shape[:-2], *order.shape)
    return full.gather(-1, index).masked_fill(order < 0, fill)


def shortened_positions(
    full: Int[Tensor, "*rest B L"], valid: Bool[Tensor, "B L"], order: Int[Tensor, "B S"], positions: Positions
) -> Int[Tensor, "*rest B S"]:
    """Positions of the columns that stay.

    Numbering anew takes out every number that no token has any more: n -> n - #{m < n : m is gone}. A row for text,
    which M-RoPE models read for their masks only, counts tokens either way.

    Args:
        full: [B, L], [3, B, L], or [4, B, L] with a row for text first.
        valid: columns of the full prompts that are no padding.
        order: for every column of the short prompts its column in the full ones, -1 where padded.
        positions: how to number.
    """
    inside = order >= 0
    short = rearranged(full, order, 0)
    text = full.ndim == 3 and len(full) == 4
    turning, numbers = (short[1:], full[1:]) if text else (short, full)
    if positions == "repack":
        turning = _packed(turning, numbers, valid, inside)
    if text:
        counted = (inside.long().cumsum(-1) - 1).clamp(min=0)
        turning = torch.cat([counted[None].to(turning.dtype), turning])
    column = torch.arange(order.shape[1], device=order.device)
    return turning.where(
        inside, column.to(turning.dtype)
    )  # padding is numbered by its column, as models of one dimension do


def _packed(
    short: Int[Tensor, "*rest B S"],
    full: Int[Tensor, "*rest B L"],
    valid: Bool[Tensor, "B L"],
    inside: Bool[Tensor, "B S"],
) -> Int[Tensor, "*rest B S"]:
    prompts, largest = len(valid), int(full.max()) + 1

    def present(numbers: Tensor, real: Tensor) -> Bool[Tensor, "B M"]:
        channels = numbers.reshape(-1, *numbers.shape[-2:])
        found = torch.zeros(prompts, largest, dtype=torch.long, device=numbers.device)
        for channel in channels:
            found.scatter_add_(1, channel.long().clamp(min=0), real.long())
        return found > 0

    gone = (present(full, valid) & ~present(short, inside)).long()
    below = gone.cumsum(1) - gone
    return short - below.expand(*short.shape[:-2], *below.shape).gather(-1, short.long().clamp(min=0))
