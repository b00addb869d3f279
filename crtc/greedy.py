"""Greedy selectors: one token after the other, each the best given those before, on whole padded batches of groups.

Every selector takes `valid [G, M]` and whole numbers `k [G]` and returns the chosen ones as a mask [G, M] with exactly
`k[g]` true entries per row. Ties go to the earlier token. All groups of a batch take their i-th step together; what a
step costs is in each docstring.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def max_min(
    distance: Float[Tensor, "G M M"],
    first: Int[Tensor, " G"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
) -> Bool[Tensor, "G M"]:
    """Farthest point: next is the token with the largest distance to the nearest chosen one. O(M) a step.

    Args:
        distance: symmetric, non-negative.
        first: where every group starts.
    """
    rows = torch.arange(len(distance), device=distance.device)
    nearest = torch.full(valid.shape, torch.inf, dtype=distance.dtype, device=distance.device)

    def after(current: Int[Tensor, " G"]) -> Float[Tensor, "G M"]:
        nonlocal nearest
        nearest = torch.minimum(nearest, distance[rows, current])
        return nearest

    return _greedy(first, after, valid, k)


def farthest_points(
    points: Float[Tensor, "G M Z"],
    first: Int[Tensor, " G"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    weight: Float[Tensor, "G M"] | None = None,
) -> Bool[Tensor, "G M"]:
    """Farthest point by squared Euclidean distance, without the matrix of distances. O(M Z) a step.

    Args:
        points: coordinates.
        first: where every group starts.
        weight: importance in (0, inf), a factor on the distance; plain farthest point without.
    """
    points = points.detach()
    apart = torch.empty_like(points)  # one for all steps: fresh memory would cost more than the arithmetic
    rows = torch.arange(len(points), device=points.device)
    nearest = torch.full(valid.shape, torch.inf, dtype=points.dtype, device=points.device)

    def after(current: Int[Tensor, " G"]) -> Float[Tensor, "G M"]:
        nonlocal nearest
        # a floor keeps exact copies in the order of their weight once all else is covered
        torch.sub(points, points[rows, current][:, None], out=apart)
        found = apart.square_().sum(-1) + 1e-9
        nearest = torch.minimum(nearest, found)
        return nearest if weight is None else nearest * weight

    return _greedy(first, after, valid, k)


def min_sum(
    likeness: Float[Tensor, "G M M"], first: Int[Tensor, " G"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]
) -> Bool[Tensor, "G M"]:
    """Next is the token with the smallest sum of likeness to the chosen. O(M) a step."""
    rows = torch.arange(len(likeness), device=likeness.device)
    total = torch.zeros(valid.shape, dtype=likeness.dtype, device=likeness.device)

    def after(current: Int[Tensor, " G"]) -> Float[Tensor, "G M"]:
        nonlocal total
        total = total + likeness[rows, current]
        return -total

    return _greedy(first, after, valid, k)


def marginal_relevance(
    relevance: Float[Tensor, "G M"],
    likeness: Float[Tensor, "G M M"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    trade: float,
) -> Bool[Tensor, "G M"]:
    """Next is the largest `trade * relevance - (1 - trade) * likeness to the most similar chosen`. O(M) a step."""
    rows = torch.arange(len(likeness), device=likeness.device)
    nearest = torch.full(valid.shape, -torch.inf, dtype=likeness.dtype, device=likeness.device)

    def after(current: Int[Tensor, " G"]) -> Float[Tensor, "G M"]:
        nonlocal nearest
        nearest = torch.maximum(nearest, likeness[rows, current])
        return trade * relevance - (1 - trade) * nearest

    return _greedy(_best(relevance, valid), after, valid, k)


def suppression(
    score: Float[Tensor, "G M"], weight: Float[Tensor, "G M M"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]
) -> Bool[Tensor, "G M"]:
    """Next is the largest score; it lowers every other one by its own times the weight between them. O(M) a step.

    A score that has become negative lowers nothing.

    Args:
        score: to begin with.
        weight: in [0, 1], how much of one score is taken off another.
    """
    rows = torch.arange(len(weight), device=weight.device)
    left = score

    def after(current: Int[Tensor, " G"]) -> Float[Tensor, "G M"]:
        nonlocal left
        left = left - weight[rows, current] * left[rows, current].clamp(min=0)[:, None]
        return left

    return _greedy(_best(score, valid), after, valid, k)


def coverage(
    benefit: Float[Tensor, "G R M"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    weight: Float[Tensor, "G M"] | None = None,
) -> Bool[Tensor, "G M"]:
    """Maximum coverage (facility location): next adds most to `sum_r max_{chosen} benefit`.

    O(C M) a step, where C of the R things are covered better than before: all at first, R / i or so in step i.

    Args:
        benefit: what every token gives to each of R things to be covered, not negative.
        weight: factor on what a token adds; plain coverage without.
    """
    rows = torch.arange(len(benefit), device=benefit.device)
    covered = torch.zeros(benefit.shape[:2], dtype=benefit.dtype, device=benefit.device)
    added = benefit.sum(1)

    def after(current: Int[Tensor, " G"]) -> Float[Tensor, "G M"]:
        nonlocal covered, added
        better = (benefit[rows, :, current] - covered).clamp(min=0)
        changed = better.topk(int((better > 0).sum(1).max()), dim=1).indices  # few after the first steps
        given = benefit[rows[:, None], changed]  # whole rows, many times as fast to copy as to gather
        before = covered.gather(1, changed)[..., None]
        covered = covered + better
        now = covered.gather(1, changed)[..., None]
        added = added - given.clamp_(before, now).sub_(before).sum(1)
        return added if weight is None else added * weight

    return _greedy(_best(added if weight is None else added * weight, valid), after, valid, k)


def dpp(kernel: Float[Tensor, "G M M"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]) -> Bool[Tensor, "G M"]:
    """MAP of a determinantal point process: next adds most to log det of the chosen. O(M i) in step i.

    By incremental Cholesky (Chen, Zhang and Zhou, 2018, algorithm 1). Where no token adds volume, the earliest is
    taken.

    Args:
        kernel: symmetric, positive semi-definite.
    """
    rows = torch.arange(len(kernel), device=kernel.device)
    left = kernel.diagonal(dim1=1, dim2=2).clone()
    factor = torch.zeros(len(kernel), int(k.max()), kernel.shape[1], dtype=kernel.dtype, device=kernel.device)
    tiny = torch.finfo(kernel.dtype).tiny
    # what rounding leaves of a token that the chosen span, in proportion to itself
    faint = 128 * torch.finfo(kernel.dtype).eps * left
    step = 0

    def after(current: Int[Tensor, " G"]) -> Float[Tensor, "G M"]:
        nonlocal left, step
        own = factor[rows, :step, current]
        known = (own[:, None] @ factor[:, :step])[:, 0]
        pivot = left[rows, current]
        scale = torch.where(pivot > 0, pivot.clamp(min=tiny).rsqrt(), 0)
        fresh = (kernel[rows, current] - known) * scale[:, None]
        factor[:, step] = fresh
        left = (left - fresh.square()).clamp(min=0)
        left = torch.where(left <= faint, 0, left)
        step += 1
        return left

    return _greedy(_best(left, valid), after, valid, k)


def _best(gain: Float[Tensor, "G M"], among: Bool[Tensor, "G M"]) -> Int[Tensor, " G"]:
    return gain.masked_fill(~among, -torch.inf).argmax(1)


def _greedy(
    first: Int[Tensor, " G"],
    after: Callable[[Int[Tensor, " G"]], Float[Tensor, "G M"]],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
) -> Bool[Tensor, "G M"]:
    """Begin with `first`; `after(current)` takes note of the last choice and says what each token would add now."""
    rows = torch.arange(len(valid), device=valid.device)
    chosen = torch.zeros_like(valid)
    current = first
    for step in range(int(k.max())):
        chosen[rows, current] |= step < k
        current = _best(after(current), valid & ~chosen)
    return chosen
