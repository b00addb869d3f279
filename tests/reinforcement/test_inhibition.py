"""Inhibition: copies pay, the best of them does not."""

import pytest
import torch

from crtc.graph.neighbors import feature_neighbors
from crtc.methods.reinforced_scorer import ReinforcedScorer
from crtc.reinforcement import inhibit, redundancy
from tests.making import make_image


@pytest.mark.parametrize("number", [2, 5])
def test_of_identical_tokens_exactly_one_is_spared(number):
    neighbors = feature_neighbors(torch.ones(number, 3), torch.zeros(number).long(), number - 1)
    result = inhibit(torch.ones(number), neighbors, gain=2.0, threshold=0.5)
    assert torch.allclose(result, torch.tensor([1.0] + [0.0] * (number - 1)), atol=1e-6)


def test_neighbours_on_the_grid_are_no_copies():
    """Tokens that are nothing like each other keep their scores, wherever they stand."""
    scorer = ReinforcedScorer(64, reaches=(1, 4)).eval()
    tokens = make_image(torch.eye(64)[torch.randperm(64, generator=torch.Generator().manual_seed(0))], columns=8)
    with torch.no_grad():
        expected = scorer.importance(tokens).logit
        scorer.gain.fill_(10.0)
        scorer.threshold.fill_(0.5)
        torch.testing.assert_close(scorer.importance(tokens).logit, expected)
        scorer.threshold.fill_(-0.5)
        assert not torch.allclose(scorer.importance(tokens).logit, expected)


def test_the_best_is_spared_the_unlike_are_not_touched():
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    neighbors = feature_neighbors(x, torch.zeros(4).long(), 3)
    score = torch.tensor([1.0, 3.0, 2.0, 0.5])
    assert torch.allclose(inhibit(score, neighbors, gain=4.0, threshold=0.75), torch.tensor([0.0, 3.0, 2.0, 0.5]))
    assert torch.equal(inhibit(score, neighbors, gain=4.0, threshold=1.5), score)


def test_groups_do_not_inhibit_each_other():
    neighbors = feature_neighbors(torch.ones(3, 2), torch.tensor([0, 1, -1]), 2)
    assert inhibit(torch.arange(3.0), neighbors, gain=1.0, threshold=0.0).tolist() == [0, 1, 2]


def test_gradients_reach_gain_and_threshold():
    neighbors = feature_neighbors(torch.ones(2, 2), torch.zeros(2).long(), 1)
    gain, threshold = torch.tensor(2.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    inhibit(torch.tensor([1.0, 2.0]), neighbors, gain, threshold).sum().backward()
    assert gain.grad.item() == pytest.approx(-0.5) and threshold.grad.item() == pytest.approx(2)


def test_redundancy_is_what_lies_on_similar_tokens():
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    neighbors = feature_neighbors(x, torch.tensor([0, 0, 0, 0]), 3)
    value = torch.tensor([[1.0, 10], [2, 20], [3, 30], [4, 40]])
    assert torch.allclose(redundancy(value, neighbors), torch.tensor([[2.0, 20], [1, 10], [0, 0], [0, 0]]))
