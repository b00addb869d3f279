from itertools import combinations

import pytest
import torch

from crtc.methods import KCenter
from tests.making import make_image, make_tokens


def test_starts_in_the_middle_and_goes_far() -> None:
    tokens = make_image([[0.0, 0], [1, 0], [2, 0], [9, 0], [-7, 0]])
    assert KCenter()(tokens, torch.tensor([1])).kept.tolist() == [1]
    assert KCenter()(tokens, torch.tensor([2])).kept.tolist() == [1, 3]  # 8 away on both sides, the earlier is at 3
    assert KCenter()(tokens, torch.tensor([3])).kept.tolist() == [1, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_is_within_twice_the_best_radius(seed: int) -> None:
    tokens = make_tokens([[(2, 4)]], seed=seed)
    x = tokens.x[tokens.candidates]
    distance = torch.cdist(x, x)
    best = min(float(distance[:, list(chosen)].amin(1).max()) for chosen in combinations(range(8), 3))
    kept = KCenter()(tokens, torch.tensor([3])).kept
    assert float(distance[:, kept].amin(1).max()) <= 2 * best + 1e-5


def test_directions() -> None:
    tokens = make_image([[1.0, 0], [9, 0.1], [0, 1]])
    kept = KCenter(spherical=True)(tokens, torch.tensor([2])).kept.tolist()
    assert kept == [1, 2]  # the one that points elsewhere; by distance it would be the long one and another
