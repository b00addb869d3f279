"""What visual tokens cost a language model: how many each of its layers reads, and their mean, the one honest count.

A method that prunes inside the language model lets the first layers read everything, so that "keeps 64" says little:
64 of 576 kept from the third of 32 layers on are 96 tokens in the mean over the layers. That mean, the layer-equivalent
count, is what results are reported and matched in.

Letters: G groups, S stages (layers in front of which tokens are dropped).
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_HALVINGS = 60


def read_counts(
    sizes: Int[Tensor, " G"], kept: Int[Tensor, "S G"], layers: Sequence[int], depth: int
) -> Int[Tensor, "depth G"]:
    """How many tokens of every group each layer reads, if from `layers[s]` on only `kept[s]` are left.

    Raises:
        ValueError: if the layers are not ascending numbers below `depth`, or not one for each row of `kept`.
    """
    check_layers(layers, depth)
    if len(layers) != len(kept):
        raise ValueError(f"layers is {list(layers)}, expected one for each of {len(kept)} rows of kept")
    counts = sizes[None].repeat(depth, 1)
    for layer, left in zip(layers, kept, strict=True):
        counts[layer:] = left
    return counts


def layer_equivalent(counts: Int[Tensor, "depth G"]) -> Float[Tensor, " G"]:
    """Mean over the layers of the tokens that each reads."""
    return counts.double().mean(0)


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raise `ValueError` unless `layers` are ascending, from the second layer to the last."""
    ascending = all(one < other for one, other in itertools.pairwise(layers))
    if not ascending or not all(0 < layer < depth for layer in layers):
        raise ValueError(f"layers is {list(layers)}, expected ascending numbers from 1 to {depth - 1}")


def staged(sizes: Int[Tensor, " G"], shares: Sequence[float], scale: Float[Tensor, " G"]) -> Int[Tensor, "S G"]:
    """Counts of every stage on a schedule: `scale * shares[s]` of a group, at least one and no more than all."""
    share = torch.tensor(shares, dtype=torch.float64, device=sizes.device)[:, None]
    return (sizes * share * scale + 1e-9).floor().long().clamp(min=1).minimum(sizes)


def ending_with(sizes: Int[Tensor, " G"], shares: Sequence[float], last: Int[Tensor, " G"]) -> Int[Tensor, "S G"]:
    """Counts on a schedule whose last stage keeps `last`."""
    return staged(sizes, shares, last / (sizes * shares[-1]))


def matched(
    sizes: Int[Tensor, " G"], shares: Sequence[float], target: Int[Tensor, " G"], layers: Sequence[int], depth: int
) -> Int[Tensor, "S G"]:
    """Counts on a schedule that spend `target` tokens in the mean over the layers.

    The largest scale of the schedule that does not exceed the target: what is missing is less than one token of one
    stage in the mean over the layers.

    Raises:
        ValueError: if the layers in front of the first stage alone cost more, or the target is more than all.
    """

    def spent(scale: Float[Tensor, " G"]) -> Float[Tensor, " G"]:
        return layer_equivalent(read_counts(sizes, staged(sizes, shares, scale), layers, depth))

    low = torch.zeros(sizes.shape, dtype=torch.float64, device=sizes.device)
    high = torch.full_like(low, 1 / min(shares))
    least = spent(low)
    if bool(((target < least) | (target > sizes)).any()):
        bad = int(((target < least) | (target > sizes)).nonzero()[0, 0])
        raise ValueError(
            f"the target of group {bad} is {int(target[bad])} tokens in the mean over {depth} layers, expected between "
            f"{float(least[bad]):.1f}, which it costs to drop tokens in front of layer {layers[0]} at the earliest, "
            f"and its {int(sizes[bad])} tokens"
        )
    done = spent(high) <= target
    low = torch.where(done, high, low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = spent(middle) <= target
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return staged(sizes, shares, low)
