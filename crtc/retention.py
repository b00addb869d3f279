"""Semantic retention: how much of what the full model says is still said, with intervals.

All functions are pure and take one entry per question or per answer token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crtc.tokens import Plan, Tokens

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def kl_divergence(teacher: Float[Tensor, "A V"], logits: Float[Tensor, "A V"]) -> Float[Tensor, " A"]:
    """`KL(full || compressed)` in nats at every answer token; `teacher` are log-probabilities."""
    return (teacher.exp() * (teacher - logits.log_softmax(-1))).sum(-1).clamp(min=0)


def evidence_recall(
    tokens: Tokens, plan: Plan, boxes: Sequence[tuple[Box, ...]], views: Sequence[Box]
) -> Float[Tensor, " G"]:
    """Share of the evidence area that is still told apart, for every group; NaN where there is no evidence.

    A patch counts by its overlap with the boxes, times the share of evidence in the content of its slot if it gives
    content at all: 1 for a kept patch or a cluster of evidence alone, little for one averaged into background, 0 for a
    dropped one.

    Args:
        tokens: with `grid`.
        plan: of these tokens.
        boxes: evidence of every group: left, top, right, bottom in pixels of its picture.
        views: the part of the picture of every group that its patches cover, in the same pixels.
    """
    recall = torch.full((tokens.num_groups,), torch.nan)
    candidates = tokens.candidates.nonzero()[:, 0].cpu()
    grid, group = tokens.grid.cpu()[candidates], tokens.group.cpu()[candidates]
    weight, slot = plan.weight.cpu().float()[candidates], plan.slot.cpu()[candidates]
    overlap = torch.zeros(len(candidates))
    for number, (found, view) in enumerate(zip(boxes, views, strict=True)):
        inside = group == number
        rows, columns = int(grid[inside, 1].max()) + 1, int(grid[inside, 2].max()) + 1
        height, width = (view[3] - view[1]) / rows, (view[2] - view[0]) / columns
        top, left = view[1] + grid[inside, 1] * height, view[0] + grid[inside, 2] * width
        overlap[inside] = _covered(left, top, width, height, found)
    evident = (overlap > 0).float() * weight
    joined = slot >= 0
    content = torch.zeros(len(plan.kept)).index_add(0, slot[joined], weight[joined])
    pure = torch.zeros(len(plan.kept)).index_add(0, slot[joined], evident[joined]) / content.clamp(min=1e-9)
    told = torch.where(joined & (weight > 0), pure[slot.clamp(min=0)], 0.0) * overlap
    total = torch.zeros(tokens.num_groups).index_add(0, group, overlap)
    kept = torch.zeros(tokens.num_groups).index_add(0, group, told)
    has = total > 0
    recall[has] = kept[has] / total[has]
    return recall


def _covered(
    left: Float[Tensor, " P"], top: Float[Tensor, " P"], width: float, height: float, boxes: Sequence[Box]
) -> Float[Tensor, " P"]:
    """Area of every patch that lies in at least one of the boxes, on the cells that the edges of the boxes make."""
    if not boxes:
        return torch.zeros_like(left)
    x0, y0, x1, y1 = torch.tensor(boxes, dtype=torch.float32).unbind(1)
    xs = torch.tensor(sorted({*x0.tolist(), *x1.tolist()}))
    ys = torch.tensor(sorted({*y0.tolist(), *y1.tolist()}))
    across = (x0[:, None] <= xs[:-1]) & (xs[1:] <= x1[:, None])
    down = (y0[:, None] <= ys[:-1]) & (ys[1:] <= y1[:, None])
    inside = (down[:, :, None] & across[:, None]).any(0).float()
    wide = (torch.minimum(left[:, None] + width, xs[1:]) - torch.maximum(left[:, None], xs[:-1])).clamp(min=0)
    tall = (torch.minimum(top[:, None] + height, ys[1:]) - torch.maximum(top[:, None], ys[:-1])).clamp(min=0)
    area: Tensor = ((tall @ inside) * wide).sum(1)
    return area


@dataclass(frozen=True)
class Resamples:
    """Bootstrap draws of whole pictures, since questions about one picture stand or fall together.

    Args:
        drawn: how often each picture is drawn; 255 times is out of reach.
        place: of every question's picture.
    """

    drawn: npt.NDArray[np.uint8]  # [count, P]
    place: Int[np.ndarray, " Q"]

    def sums(self, values: Floats | Bools) -> Floats:
        """Sum of one value per question in every draw."""
        per_picture = np.bincount(self.place, values, minlength=self.drawn.shape[1])
        rows = range(0, len(self.drawn), _ROWS)
        return np.concatenate([self.drawn[start : start + _ROWS].astype(np.float64) @ per_picture for start in rows])


_ROWS = 500
"""Draws that are held as floats at once: of many pictures, all would not fit into memory."""


def resamples(owner: Int[np.ndarray, " Q"], *, count: int = 10_000, seed: int = 0) -> Resamples:
    """Bootstrap draws of pictures.

    Args:
        owner: the picture of every question.
        count: resamples.
        seed: of the draws.
    """
    pictures, place = np.unique(owner, return_inverse=True)
    random = np.random.default_rng(seed)
    share = np.full(len(pictures), 1 / len(pictures))
    rows = [min(_ROWS, count - start) for start in range(0, count, _ROWS)]
    drawn = [random.multinomial(len(pictures), share, size=number).astype(np.uint8) for number in rows]
    return Resamples(np.concatenate(drawn), place)


def ratio(part: Floats | Bools, whole: Floats | Bools, draws: Resamples) -> Interval:
    """`100 * sum(part) / sum(whole)`, such as accuracy relative to all tokens, paired by question."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    if whole.sum() == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    below = draws.sums(whole)
    found = 100 * draws.sums(part)[below > 0] / below[below > 0]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(float(100 * part.sum() / whole.sum()), float(low), float(high))


def difference(first: Floats | Bools, second: Floats | Bools, whole: Floats | Bools, draws: Resamples) -> Interval:
    """Difference of two such ratios, paired by question."""
    return ratio(np.asarray(first, float) - np.asarray(second, float), whole, draws)


def flips(full: Bools, compressed: Bools) -> tuple[float, float]:
    """Harmful (right with all tokens, wrong compressed) and lucky flips, in percent of all questions."""
    return float(100 * np.mean(full & ~compressed)), float(100 * np.mean(~full & compressed))
