import torch

from crtc.methods import Norm, ReceivedAttention
from tests.making import make_golden, make_image


def test_the_longest_stay() -> None:
    plan = Norm()(make_image([[3.0, 0], [0, -5], [1, 1], [0, 4]]), torch.tensor([2]))
    assert plan.kept.tolist() == [1, 3]


def test_the_most_attended_stay() -> None:
    tokens = make_golden(0)
    received = tokens.signals.received_attention
    assert received is not None
    plan = ReceivedAttention()(tokens, torch.tensor([20]))
    assert plan.kept.tolist() == sorted(received.topk(20).indices.tolist())
