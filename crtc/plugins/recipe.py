"""How a plug-in's model compresses: what its user wrote, checked before any weights are loaded."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from crtc import counts
from crtc.compression import DEFAULT, Handle, compressed
from crtc.hosts import Positions, check_positions
from crtc.methods import Method, get_method, trained


@dataclass(frozen=True)
class Recipe:
    """A method and how much it keeps.

    Args:
        method: that chooses.
        keep: fraction of every image's tokens to keep.
        count: whole tokens of every image to keep.
        mass: whether merged tokens draw as much attention as those they stand for.
        positions: `"keep"` or `"repack"`, as for `compressed`.

    Raises:
        ValueError: if not exactly one of `keep` and `count` is given, or one of the values is none that it can be.
    """

    method: Method
    keep: float | None = None
    count: int | None = None
    mass: bool = True
    positions: Positions = "keep"

    def __post_init__(self) -> None:
        for name, amount in (("keep", self.keep), ("count", self.count)):
            if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int | float)):
                raise ValueError(f"{name} is {amount!r}, expected a number")
        counts.resolve(torch.empty(0, dtype=torch.long), keep=self.keep, count=self.count)
        if not isinstance(self.mass, bool):
            raise ValueError(f"mass is {self.mass!r}, expected True or False")
        check_positions(self.positions)

    def on(self, model: Any) -> AbstractContextManager[Handle]:
        """`compressed` of this recipe."""
        return compressed(
            model, self.method, keep=self.keep, count=self.count, mass=self.mass, positions=self.positions
        )


def chosen(method: str | None, scorer: str | None, **settings: Any) -> Method:
    """The method that a user named, the trained one of a folder, or `DEFAULT` where there is neither.

    Args:
        method: name of the catalogue.
        scorer: folder that `crtc fit` wrote.
        settings: what the method takes to be made.

    Raises:
        ValueError: if both `method` and `scorer` are given, there is no such method, or it takes no such settings.
    """
    if method is not None and scorer is not None:
        raise ValueError(f"method is {method!r} and scorer is {scorer!r}, expected at most one of them")
    name = DEFAULT if method is None else str(method)
    try:
        return get_method(name, **settings) if scorer is None else trained(str(scorer), **settings)
    except TypeError as error:
        raise ValueError(f"{scorer or name} cannot be made with {settings}: {error}") from error
