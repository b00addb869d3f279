"""Which patches of the tower a visual token is made of, asked of the model itself.

Gradients reach from a token exactly to its patches, so no family's geometry (dropped [CLS], pooling, shuffled windows,
cropped tiles) is written down anywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

DIGIT = 3
"""Bits of a row's number that are told by one gradient."""
ROUNDING = 2**-6
"""Of gradients, relative to their largest channel; what reaches a row less is not a part of it."""


@contextmanager
def shapes_only() -> Iterator[None]:
    """A graph made in here keeps shapes where it would keep activations, so that it costs no memory.

    Its gradients are those of the same operations at other activations: of other values, but from the same rows to the
    same patches, which is all that `reached` asks. What does not depend on the states (weights, masks, indices) stays.
    """

    def pack(saved: Tensor) -> Tensor | tuple[torch.Size, torch.dtype, torch.device]:
        return (saved.shape, saved.dtype, saved.device) if saved.requires_grad else saved

    def unpack(kept: Tensor | tuple[torch.Size, torch.dtype, torch.device]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        shape, dtype, device = kept
        # positive, so that roots have them and rectifiers let them pass
        row = 0.5 + torch.rand(shape[-1:], generator=torch.Generator().manual_seed(0)) / 2
        return row.to(device, dtype).expand(shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def reached(rows: Float[Tensor, "R D"], states: list[Tensor]) -> Int[Tensor, " P"] | None:
    """For every patch the one visual row that it is part of, -1 for none; None if patches go into several rows.

    The gradient of a weighted sum of rows at a patch of one row is that row's weight times its gradient. Rows are
    numbered by weights, a digit of their number at a time; powers of two, which change no bit of a gradient but its
    exponent, so that any float type will do.

    Args:
        rows: visual rows, with their graph.
        states: the states of the tower that they were made of, one tensor or several.
    """
    if not rows.requires_grad or not states:
        return None
    number = torch.arange(len(rows), device=rows.device)
    drawn = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0)).to(rows.device, rows.dtype)
    one = rows @ drawn  # one channel, drawn, so that nothing as large as the rows waits for its turn
    del rows

    def gradient(weight: Tensor) -> Float[Tensor, "P C"]:
        parts = torch.autograd.grad(one, states, weight.to(one.dtype), retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten(0, -2) for part in parts]).to(one.device, torch.float32)

    plain = gradient(torch.ones_like(number))
    some = plain.abs().amax(1) > 0
    if not bool(some.any()):
        return None
    plain, found = plain[some], number.new_zeros(int(some.sum()))
    channel = plain.abs().argmax(1, keepdim=True)
    for shift in range(0, max(1, (len(number) - 1).bit_length()), DIGIT):
        weighted = gradient(2 ** ((number >> shift) % 2**DIGIT))[some]
        digit = (weighted / plain).gather(1, channel)[:, 0].clamp(min=0).log2().round()
        near = (weighted - plain * 2 ** digit[:, None]).abs().amax(1) <= ROUNDING * weighted.abs().amax(1)
        if not bool((near & (digit >= 0) & (digit < 2**DIGIT)).all()):  # nor if a gradient is not finite
            return None
        found += digit.long() << shift
        del weighted, near
    return number.new_full(some.shape, -1).index_put((some,), found)
