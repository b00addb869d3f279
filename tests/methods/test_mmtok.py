import pytest
import torch
from torch.nn import functional as F

from crtc.methods import MMTok
from tests.making import make_golden


@pytest.mark.parametrize("weight", [0.5, 20.0])
def test_equals_the_definition(weight: float) -> None:
    tokens = make_golden(4, rows=6, columns=6)
    image = tokens.candidates
    assert tokens.signals.features is not None
    seen, words = F.normalize(tokens.x[image], dim=-1), F.normalize(tokens.x[~image], dim=-1)
    unit = F.normalize(tokens.signals.features[image], dim=-1)
    asked, looks = (words @ seen.T / 0.02).softmax(-1).double(), (unit @ unit.T / 0.2).softmax(-1).double()

    def value(chosen: list[int]) -> float:
        return float(asked[:, chosen].amax(1).mean() + weight * looks[:, chosen].amax(1).mean())

    chosen: list[int] = []
    while len(chosen) < 8:
        gains = [-1.0 if i in chosen else value([*chosen, i]) for i in range(36)]
        chosen.append(gains.index(max(gains)))
    assert MMTok(weight=weight)(tokens, torch.tensor([8])).kept.tolist() == sorted(chosen)


def test_refuses_impossible_settings() -> None:
    with pytest.raises(ValueError, match="-1"):
        MMTok(weight=-1)
    with pytest.raises(ValueError, match="0"):
        MMTok(temperature=0)
