"""DART: for a few pivots the tokens least like each of them, as duplication tells more than importance (2502.11494)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.merging import give_mass
from crtc.methods.inside import InsideMethod, text_behind
from crtc.tokens import Groups, Plan, Tokens


class DART(InsideMethod):
    """Pivots are the visual tokens and the words behind them with the largest L1 norm of keys in layer K - 1.

    Each pivot in turn adds the visual tokens, not chosen yet, of the lowest cosine to it among the states in front of
    layer K, behind the last norm; visual pivots stay themselves. K is 2 of 32 layers. The norm is that of rotated keys
    and changes with absolute positions, so that left padding that a model counts among them can change the choice.

    Deviations: exactly k tokens stay, shared among the pivots as evenly as can be, where the code adds
    int(T / pivots) for each on top of the visual pivots; pivots take turns by falling norm, visual ones first, where
    the code goes through a set in the order of its hash.

    Args:
        layers: K; 2 of 32 without.
        matched: whether amounts are the mean over all layers, else what is left from layer K on.
        image_pivots: visual pivots.
        text_pivots: words among the pivots.
    """

    source = "DART, arXiv 2502.11494"
    licence = "Apache-2.0"
    family = "diversity"
    needs = frozenset({"layer_keys", "normed_states"})
    question_aware = True
    published_layers = (2,)

    def __init__(
        self,
        *,
        layers: Sequence[int] | None = None,
        matched: bool = True,
        image_pivots: int = 4,
        text_pivots: int = 4,
    ):
        super().__init__(layers=layers, matched=matched)
        if image_pivots < 0 or text_pivots < 0 or image_pivots + text_pivots < 1:
            raise ValueError(
                f"image_pivots is {image_pivots} and text_pivots {text_pivots}, expected one pivot at least"
            )
        self.image_pivots, self.text_pivots = image_pivots, text_pivots

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep the visual pivots of every group and the tokens least like the pivots, `k[g]` in all."""
        groups, behind = Groups.of(tokens), text_behind(tokens)
        keys, states = tokens.signals.layer_keys, tokens.signals.normed_states
        assert keys is not None and states is not None
        norm, unit = keys.float().abs().sum((1, 2)), F.normalize(states.float(), dim=-1)
        kept = torch.zeros_like(groups.valid)
        for number, wanted in enumerate(k.tolist()):
            members = groups.index[number][groups.valid[number]]
            words = (behind & (tokens.sequence == tokens.sequence[members[0]])).nonzero()[:, 0]
            pivots = _largest(norm, members, min(self.image_pivots, wanted))
            turns = torch.cat([pivots, _largest(norm, words, self.text_pivots)])
            found = least_like(unit[members], torch.isin(members, pivots), unit[turns], wanted)
            kept[number, : len(members)] = found
        return give_mass(tokens, groups, kept)


def least_like(
    unit: Float[Tensor, "M D"], kept: Bool[Tensor, " M"], pivots: Float[Tensor, "P D"], k: int
) -> Bool[Tensor, " M"]:
    """`kept`, and for each pivot in turn its even share of the rest with the lowest cosine to it, `k` in all."""
    kept = kept.clone()
    num = len(pivots)
    if not num:  # neither words nor visual pivots: the first token stands in
        pivots, num = unit[:1], 1
    missing = k - int(kept.sum())
    for number, pivot in enumerate(pivots):
        share = (missing * (number + 1)) // num - (missing * number) // num
        order = (unit @ pivot).masked_fill(kept, torch.inf).argsort(stable=True)
        kept[order[:share]] = True
    return kept


def _largest(norm: Float[Tensor, " N"], among: Int[Tensor, " M"], num: int) -> Int[Tensor, " P"]:
    return among[norm[among].argsort(descending=True, stable=True)[:num]]
