"""MMTok: maximal coverage of both the question and the image (2508.18264)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.batching import by_group
from crtc.greedy import coverage
from crtc.merging import give_mass
from crtc.methods.method import Method
from crtc.relevance import words_of
from crtc.similarity import cosine
from crtc.tokens import Groups, Plan, Tokens


class MMTok(Method):
    """Greedy maximum of mean_t max_s M(t, s) + weight * mean_v max_s M(v, s) over the kept tokens s.

    M(t, s) is the softmax over s of cos(t, x_s) / text_temperature for the words t of the question, M(v, s) that of
    cos(f_v, f_s) / temperature with the features f before the projector. Both means are monotone and submodular, so
    the greedy choice reaches 1 - 1/e of the best.

    Deviations: all text of the sequence is to be covered, where the code for LLaVA picks keywords of the question;
    dropped tokens give their mass to the kept token most like them.

    Args:
        weight: of covering the image.
        text_temperature: of the softmax for words.
        temperature: of the softmax for visual tokens.
    """

    source = "MMTok, arXiv 2508.18264, maximum coverage"
    licence = "Apache-2.0"
    family = "diversity"
    needs = frozenset({"text", "features"})
    question_aware = True

    def __init__(self, *, weight: float = 0.5, text_temperature: float = 0.02, temperature: float = 0.2):
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight is {weight!r}, expected 0 or more")
        if min(text_temperature, temperature) <= 0:
            raise ValueError(f"temperatures are {text_temperature!r} and {temperature!r}, expected more than 0")
        self.weight = weight
        self.text_temperature = text_temperature
        self.temperature = temperature

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep the `k[g]` tokens of every group that cover question and image."""
        groups = Groups.of(tokens)
        features = tokens.signals.features
        assert features is not None
        words, spoken = words_of(tokens, groups)
        parts = (groups.gather(tokens.x), groups.gather(features), groups.valid, words, spoken)
        (benefit,) = by_group(self.benefit, *parts)
        return give_mass(tokens, groups, coverage(benefit, groups.valid, k))

    def benefit(
        self,
        x: Float[Tensor, "G M D"],
        features: Float[Tensor, "G M De"],
        valid: Bool[Tensor, "G M"],
        words: Float[Tensor, "G T D"],
        spoken: Bool[Tensor, "G T"],
    ) -> tuple[Float[Tensor, "G M R"]]:
        """What every token gives to the words and to the tokens, in shares of what is to be covered."""
        others = torch.where(valid, 0.0, -torch.inf)[:, None]
        asked = words @ F.normalize(x.float(), dim=-1).transpose(1, 2) / self.text_temperature
        asked = (asked + others).softmax(-1) * (spoken / spoken.sum(1, keepdim=True).clamp(min=1))[..., None]
        looks = cosine(features).div_(self.temperature).add_(others).softmax(-1)
        looks = looks.mul_((self.weight * valid / valid.sum(1, keepdim=True))[..., None])
        return (torch.cat([asked, looks], 1).transpose(1, 2),)
