"""Every greedy selector against its definition, one token and one group at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crtc import greedy
from crtc.greedy import coverage, dpp, farthest_points, marginal_relevance, max_min, min_sum, suppression

SIZES, K = [9, 5, 1], [4, 5, 1]


def batch(seed: int, double: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Points of ragged groups, which of them are real, and counts."""
    random = torch.Generator().manual_seed(seed)
    points = torch.randn(len(SIZES), max(SIZES), 4, generator=random)
    valid = torch.arange(max(SIZES)) < torch.tensor(SIZES)[:, None]
    points = points * valid[..., None]
    return (points.double() if double else points), valid, torch.tensor(K)


def alone(gain: Callable[[list[int], int], float], size: int, k: int, first: int | None = None) -> list[int]:
    """The greedy choice by its definition: `gain(chosen, candidate)` is to be largest."""
    chosen: list[int] = [] if first is None else [first]
    while len(chosen) < k:
        left = [i for i in range(size) if i not in chosen]
        gains = [float(gain(chosen, i)) for i in left]
        chosen.append(left[gains.index(max(gains))])
    return sorted(chosen[:k])


def picked(mask: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask]


@pytest.mark.parametrize("seed", range(4))
def test_max_min(seed: int) -> None:
    points, valid, k = batch(seed)
    distance = torch.cdist(points, points)
    first = torch.tensor([3, 2, 0])
    expected = [
        alone(lambda chosen, i, g=g: min(distance[g, i, c] for c in chosen), SIZES[g], K[g], int(first[g]))
        for g in range(3)
    ]
    assert picked(max_min(distance, first, valid, k)) == expected
    assert picked(farthest_points(points, first, valid, k)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_weighted_farthest_points(seed: int) -> None:
    points, valid, k = batch(seed)
    weight = torch.rand(valid.shape, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    square = torch.cdist(points, points).square()
    first = torch.tensor([0, 1, 0])
    expected = [
        alone(lambda chosen, i, g=g: weight[g, i] * min(square[g, i, c] for c in chosen), SIZES[g], K[g], int(first[g]))
        for g in range(3)
    ]
    assert picked(farthest_points(points, first, valid, k, weight)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_min_sum(seed: int) -> None:
    points, valid, k = batch(seed)
    likeness = points @ points.transpose(1, 2)
    first = torch.tensor([1, 4, 0])
    expected = [
        alone(lambda chosen, i, g=g: -sum(likeness[g, i, c] for c in chosen), SIZES[g], K[g], int(first[g]))
        for g in range(3)
    ]
    assert picked(min_sum(likeness, first, valid, k)) == expected


@pytest.mark.parametrize("trade", [0.0, 0.4, 1.0])
def test_marginal_relevance(trade: float) -> None:
    points, valid, k = batch(1)
    likeness = points @ points.transpose(1, 2)
    relevance = points[..., 0]

    def gain(g: int) -> Callable[[list[int], int], float]:
        def of(chosen: list[int], i: int) -> float:
            if not chosen:
                return float(relevance[g, i])
            return float(trade * relevance[g, i] - (1 - trade) * max(likeness[g, i, c] for c in chosen))

        return of

    expected = [alone(gain(g), SIZES[g], K[g]) for g in range(3)]
    assert picked(marginal_relevance(relevance, likeness, valid, k, trade)) == expected


@pytest.mark.parametrize("looks", [1, 2, 32])
@pytest.mark.parametrize("weighted", [False, True])
def test_coverage(weighted: bool, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "_LOOKS", looks)
    _, valid, k = batch(0)
    random = torch.Generator().manual_seed(5)
    benefit = torch.rand(3, 7, max(SIZES), generator=random).double()
    weight = torch.rand(valid.shape, generator=random).double() + 0.1 if weighted else None

    def gain(g: int) -> Callable[[list[int], int], float]:
        def of(chosen: list[int], i: int) -> float:
            before = benefit[g][:, chosen].amax(1) if chosen else torch.zeros(7).double()
            added = (benefit[g, :, i] - before).clamp(min=0).sum()
            return float(added if weight is None else added * weight[g, i])

        return of

    expected = [alone(gain(g), SIZES[g], K[g]) for g in range(3)]
    assert picked(coverage(benefit.transpose(1, 2), valid, k, weight)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_dpp_maximises_the_determinant_step_by_step(seed: int) -> None:
    points, valid, _ = batch(seed)
    k = torch.tensor([4, 3, 1])
    quality = torch.rand(valid.shape, generator=torch.Generator().manual_seed(seed)).double() + 0.5
    unit = torch.nn.functional.normalize(points, dim=-1)
    kernel = quality[:, :, None] * (unit @ unit.transpose(1, 2)) * quality[:, None]
    expected = [
        alone(lambda chosen, i, g=g: torch.linalg.det(kernel[g][[*chosen, i]][:, [*chosen, i]]), SIZES[g], int(k[g]))
        for g in range(3)
    ]
    assert picked(dpp(kernel, valid, k)) == expected


def test_copies_are_all_taken_when_nothing_else_is_left() -> None:
    valid = torch.ones(1, 6, dtype=torch.bool)
    k, first = torch.tensor([4]), torch.tensor([0])
    same = torch.ones(1, 6, 6)
    for mask in (
        max_min(1 - same, first, valid, k),
        farthest_points(same[..., :2], first, valid, k),
        min_sum(same, first, valid, k),
        marginal_relevance(same[:, 0], same, valid, k, 0.5),
        coverage(same, valid, k),
        dpp(same, valid, k),
    ):
        assert picked(mask) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("seed", range(4))
def test_suppression(seed: int) -> None:
    points, valid, k = batch(seed)
    score = points[..., 0].abs() * valid
    weight = (-torch.cdist(points, points)).exp()
    chosen = picked(suppression(score, weight, valid, k))
    for row, size in enumerate(SIZES):

        def left(done: list[int], token: int, row: int = row, size: int = size) -> float:
            now, order = score[row].clone(), []
            for _ in done:
                best = max((i for i in range(size) if i not in order), key=lambda i: float(now[i]))
                order.append(best)
                now = now - weight[row, best] * now[best].clamp(min=0)
            return float(now[token])

        assert chosen[row] == alone(left, size, K[row])


def test_suppression_takes_off_the_share_of_the_weight() -> None:
    score = torch.tensor([[1.0, 0.9, 0.5]])
    weight = torch.tensor([[[1.0, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert picked(suppression(score, weight, valid, torch.tensor([2]))) == [[0, 2]]
    assert picked(suppression(score, 0.5 * weight, valid, torch.tensor([2]))) == [[0, 1]]
