import torch
from torch.nn import functional as F

from crtc.methods import ToDRE
from tests.making import make_golden


def test_equals_the_definition() -> None:
    tokens = make_golden(3)
    image = tokens.candidates
    features, attention = tokens.signals.features, tokens.signals.cls_attention
    assert features is not None and attention is not None
    unit = F.normalize(features[image], dim=-1)
    chosen = [int(attention[image].argmax())]
    while len(chosen) < 24:
        total = (unit @ unit[chosen].T).sum(1)
        total[chosen] = torch.inf
        chosen.append(int(total.argmin()))
    assert ToDRE()(tokens, torch.tensor([24])).kept.tolist() == sorted(chosen)
