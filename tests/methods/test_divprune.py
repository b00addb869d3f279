import math

import torch

from crtc.methods import DivPrune
from tests.making import make_image


def angles(*degrees: float) -> list[list[float]]:
    return [[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees]


def test_four_known_vectors() -> None:
    # Nearest neighbours are 10, 10, 50 and 60 degrees away, so 130 is first; farthest from it is 0, then 60.
    tokens = make_image(angles(0, 10, 60, 130))
    assert DivPrune()(tokens, torch.tensor([1])).kept.tolist() == [3]
    assert DivPrune()(tokens, torch.tensor([2])).kept.tolist() == [0, 3]
    assert DivPrune()(tokens, torch.tensor([3])).kept.tolist() == [0, 2, 3]


def test_lengths_do_not_matter() -> None:
    x = torch.tensor(angles(0, 10, 60, 130)) * torch.tensor([[5.0], [1], [0.1], [2]])
    assert DivPrune()(make_image(x), torch.tensor([3])).kept.tolist() == [0, 2, 3]


def test_dropped_mass_goes_to_the_most_similar() -> None:
    plan = DivPrune()(make_image(angles(0, 10, 60, 130)), torch.tensor([3]))
    assert plan.slot.tolist() == [0, 0, 1, 2]
    assert plan.size.tolist() == [2, 1, 1]


def test_a_mutual_pair_is_a_tie_that_the_earlier_wins() -> None:
    assert DivPrune()(make_image(angles(90, 0)), torch.tensor([1])).kept.tolist() == [0]
