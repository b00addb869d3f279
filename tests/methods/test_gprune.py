import math

import numpy as np
import pytest
import torch

from crtc.methods import GPrune
from tests.making import make_image, make_tokens


def by_loops(x: np.ndarray, threshold: float, temperature: float, steps: int) -> list[float]:
    """The published formula, one number at a time."""
    num = len(x)
    norm = [math.sqrt(float((row**2).sum())) for row in x]
    walk = np.zeros((num, num))
    degree = [0] * num
    for i in range(num):
        for j in range(num):
            likeness = float(x[i] @ x[j]) / (norm[i] * norm[j])
            if i == j or likeness >= threshold:
                walk[i, j] = math.exp((likeness - 1) / temperature)
                degree[i] += 1
        walk[i] /= walk[i].sum()
    weight = norm
    for _ in range(steps):
        weight = [sum(weight[i] * walk[i, j] for i in range(num)) for j in range(num)]
    return [value / count for value, count in zip(weight, degree, strict=True)]


@pytest.mark.parametrize(("threshold", "temperature", "steps"), [(0.5, 0.03, 5), (0.2, 0.1, 1), (0.0, 1.0, 0)])
def test_agrees_with_the_formula(threshold: float, temperature: float, steps: int) -> None:
    tokens = make_tokens([[(3, 4)], [(2, 2)]], channels=4)
    score = GPrune(threshold=threshold, temperature=temperature, steps=steps).score(tokens)
    for group in range(2):
        inside = tokens.group == group
        expected = by_loops(tokens.x[inside].double().numpy(), threshold, temperature, steps)
        assert score[inside].tolist() == pytest.approx(expected, rel=1e-4)


def test_lone_tokens_keep_their_norm() -> None:
    tokens = make_image([[3.0, 0, 0], [0, 2, 0], [0, 0, 1]])
    assert GPrune().score(tokens).tolist() == pytest.approx([3, 2, 1])


def test_two_copies_share() -> None:
    # Both send half to each other: (2 + 2) / 2 each, divided by two neighbours.
    tokens = make_image([[2.0, 0], [2, 0], [0, 1.5]])
    assert GPrune().score(tokens).tolist() == pytest.approx([1, 1, 1.5])
    assert GPrune()(tokens, torch.tensor([1])).kept.tolist() == [2]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value"), [("threshold", 1.0), ("threshold", -2.0), ("temperature", 0.0), ("steps", -1)]
)
def test_refuses_impossible_settings(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        GPrune(**{name: value})  # type: ignore[arg-type]
