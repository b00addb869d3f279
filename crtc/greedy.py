"""Greedy selectors: one token after the other, each the best given those before, on whole padded batches of groups.

Every selector takes `valid [G, M]` and whole numbers `k [G]` and returns the chosen ones as a mask [G, M] with exactly
`k[g]` true entries per row. Ties go to the earlier token. All groups of a batch take their i-th step together; what a
step costs is in each docstring.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_LOOKS = 32
"""Tokens that `coverage` looks at side by side."""


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


def most_central(points: Float[Tensor, "G M Z"], valid: Bool[Tensor, "G M"]) -> Int[Tensor, " G"]:
    """The point nearest to the mean of its group; padding is 0."""
    mean = points.sum(1, keepdim=True) / valid.sum(1)[:, None, None]
    return (points - mean).square_().sum(-1).masked_fill(~valid, torch.inf).argmin(1)


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
    benefit: Float[Tensor, "G M R"],
    valid: Bool[Tensor, "G M"],
    k: Int[Tensor, " G"],
    weight: Float[Tensor, "G M"] | None = None,
) -> Bool[Tensor, "G M"]:
    """Maximum coverage (facility location): next adds most to `sum_r max_{chosen} benefit`. O(R) a look.

    What a token would add only shrinks (Minoux, 1978), so a step looks again at the `_LOOKS` tokens that promise most,
    and at as many more while one not looked at promises more than the best.

    Args:
        benefit: what every token gives to each of R things to be covered, not negative.
        weight: factor on what a token adds; plain coverage without.
    """
    rows = torch.arange(len(benefit), device=benefit.device)
    start = rows[:, None] * benefit.shape[1]
    benefit = benefit.detach()
    covered = torch.zeros_like(benefit[:, 0])
    promise = benefit.sum(-1) if weight is None else benefit.sum(-1) * weight
    first = _best(promise, valid)
    gone = ~valid

    def after(current: Int[Tensor, " G"]) -> Float[Tensor, "G M"]:
        nonlocal covered
        covered = torch.maximum(covered, benefit[rows, current])
        gone[rows, current] = True
        seen = gone.clone()
        while not bool(seen[rows, promise.masked_fill(gone, -torch.inf).argmax(1)].all()):
            top = promise.masked_fill(seen, -torch.inf).topk(min(_LOOKS, seen.shape[1]), dim=1).indices
            more = benefit.flatten(0, 1).index_select(0, (start + top).flatten()).view(*top.shape, -1)
            added = more.sub_(covered[:, None]).clamp_(min=0).sum(-1)
            promise.scatter_(1, top, added if weight is None else added * weight.gather(1, top))
            seen.scatter_(1, top, True)
        return promise

    return _greedy(first, after, valid, k)


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
    gone, current = ~valid, first
    order: list[Tensor] = []
    for _ in range(int(k.max())):
        order.append(current)
        gone[rows, current] = True
        current = after(current).masked_fill(gone, -torch.inf).argmax(1)
    step = torch.arange(len(order), device=valid.device)
    # places may come again once all of a group are gone, behind its k
    found = torch.zeros_like(valid, dtype=torch.long)
    found.scatter_add_(1, torch.stack(order, 1), (step < k[:, None]).long())
    return found > 0
