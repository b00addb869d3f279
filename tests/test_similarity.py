import pytest
import torch

from crtc.similarity import cosine, nearest_neighbors


def test_cosine_with_nothing_is_zero() -> None:
    x = torch.tensor([[[3.0, 0], [2, 2], [0, 0]]])
    half = 0.5**0.5
    assert cosine(x)[0].flatten().tolist() == pytest.approx([1, half, 0, half, 1, 0, 0, 0, 0])


def test_neighbors_are_joined_both_ways() -> None:
    x = torch.tensor([[[1.0, 0], [0.8, 0.6], [0, 1]]])
    edges = nearest_neighbors(x, torch.ones(1, 3, dtype=torch.bool), 1)
    assert edges[0].flatten().tolist() == pytest.approx([0, 0.8, 0, 0.8, 0, 0.6, 0, 0.6, 0])


def test_padding_and_opposites_have_no_edges() -> None:
    x = torch.tensor([[[1.0, 0], [-1, 0], [1, 0]]])
    edges = nearest_neighbors(x, torch.tensor([[True, True, False]]), 2)
    assert not edges.any()
