"""How work on a padded batch of groups is laid out, so that it is fast on a CPU and repeats itself on a GPU."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def by_group(work: Callable[..., tuple[Tensor, ...]], *parts: Tensor) -> tuple[Tensor, ...]:
    """What `work` makes of all groups, on a CPU of one after the other: matrices of one stay in the cache.

    Args:
        work: takes and gives tensors that have the groups in front, and looks from no group into another.
        parts: what it takes.
    """
    if parts[0].device.type != "cpu" or len(parts[0]) < 2:
        return work(*parts)
    whole: tuple[Tensor, ...] = ()
    for number in range(len(parts[0])):
        found = work(*(part[number : number + 1] for part in parts))
        whole = whole or tuple(one.new_empty(len(parts[0]), *one.shape[1:]) for one in found)
        for place, one in zip(whole, found, strict=True):
            place[number] = one[0]
    return whole


def sums(x: Float[Tensor, "G M D"], target: Int[Tensor, "G M"], num: int) -> Float[Tensor, "G K D"]:
    """What comes together at each of `num` places if every row goes to its target."""
    if x.device.type == "cpu":
        start = num * torch.arange(len(x))[:, None]
        total = x.new_zeros(len(x) * num, x.shape[2]).index_add_(0, (start + target).flatten(), x.flatten(0, 1))
        return total.view(len(x), num, x.shape[2])
    # A product, since the order in which a GPU scatters changes from run to run.
    return (target[:, None] == torch.arange(num, device=x.device)[:, None]).to(x.dtype) @ x
