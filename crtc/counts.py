"""From what a user asks for, `keep` or `count`, to whole tokens per group."""

import torch
from jaxtyping import Int
from torch import Tensor


def resolve(
    group_sizes: Int[Tensor, " G"], *, keep: float | None = None, count: int | None = None
) -> Int[Tensor, " G"]:
    """Whole tokens to keep of every group.

    Args:
        group_sizes: candidates of every group.
        keep: fraction of every group in (0, 1]; rounded to the nearest whole number, at least one.
        count: whole tokens of every group.

    Raises:
        ValueError: if not exactly one of `keep` and `count` is given, or a group cannot give as many.
    """
    if (keep is None) == (count is None):
        raise ValueError(f"keep is {keep!r} and count is {count!r}, expected exactly one of them")
    if keep is not None:
        if isinstance(keep, bool) or not 0 < keep <= 1:
            raise ValueError(f"keep is {keep!r}, expected a fraction in (0, 1]")
        return torch.clamp((group_sizes.double() * keep).round().long(), min=1).minimum(group_sizes)
    assert count is not None
    if isinstance(count, bool) or not float(count).is_integer() or count < 1:
        raise ValueError(f"count is {count!r}, expected a whole number of at least 1")
    if len(group_sizes) and int(group_sizes.min()) < count:
        raise ValueError(f"count is {count}, but a group has only {int(group_sizes.min())} tokens")
    return torch.full_like(group_sizes, int(count))


def check(k: Int[Tensor, " G"], group_sizes: Int[Tensor, " G"]) -> None:
    """Raise `ValueError` unless `k` names a possible number of kept tokens for every group."""
    if k.shape != group_sizes.shape:
        raise ValueError(f"k has {tuple(k.shape)} entries, expected one for each of {len(group_sizes)} groups")
    if bool(((k < 1) | (k > group_sizes)).any()):
        bad = int(((k < 1) | (k > group_sizes)).nonzero()[0, 0])
        raise ValueError(
            f"k of group {bad} is {int(k[bad])}, expected between 1 and its {int(group_sizes[bad])} tokens"
        )
