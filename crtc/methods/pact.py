"""PACT inside the language model: unimportant tokens go, the rest is clustered by density of its keys (2504.08966)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.batching import by_group
from crtc.merging import make_plan, mean
from crtc.methods.dbdpc import farthest_added, nearest_centre, peaks_up_to, spread
from crtc.methods.inside import InsideMethod
from crtc.selection import top_k
from crtc.tokens import DROPPED, Groups, Plan, Tokens


class PACT(InsideMethod):
    """Prunes by EUTI, clusters what is left by DBDPC, and takes pruned tokens near a centre back into its mean.

    EUTI: the mean query of all visual tokens asks all of their keys, both without rotation, softmax by head, mean over
    heads, times the norm of the hidden state; 55 % stay. DBDPC: density peaks of the rotated keys of the layer that
    are no nearer to each other than a cutoff; a pruned token joins the mean if it is within 1.5 cutoffs of a centre.
    A cluster stands at its centre with its position. The layer is 4, which is run once more for its keys.

    Deviations: k is given, where the code takes as many centres as the cutoff gives: here the cutoff grows until there
    are no more than k, and the tokens farthest from all centres are added; with more than 55 % asked for, as many stay
    as are asked for. The mean query is that of an image, where the code takes all tokens that are no text.

    Args:
        layers: where to prune; 4 of 32 without.
        matched: whether amounts are the mean over all layers, else what is left from that layer on.
        share: of the tokens that stay for the clustering.
        cutoff: cosine distance that is near, to begin with.
        recovery: cutoffs within which pruned tokens come back.
    """

    source = "PACT, arXiv 2504.08966"
    licence = "MIT"
    family = "clustering"
    needs = frozenset({"layer_keys", "plain_queries", "plain_keys"})
    reads_own_layer = True
    published_layers = (4,)

    def __init__(
        self,
        *,
        layers: Sequence[int] | None = None,
        matched: bool = True,
        share: float = 0.55,
        cutoff: float = 0.21,
        recovery: float = 1.5,
    ):
        super().__init__(layers=layers, matched=matched)
        if not 0 < share <= 1:
            raise ValueError(f"share is {share!r}, expected a fraction in (0, 1]")
        if not 0 <= cutoff <= 2:
            raise ValueError(f"cutoff is {cutoff!r}, expected a cosine distance in [0, 2]")
        self.share, self.cutoff, self.recovery = share, cutoff, recovery

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep one token for each of `k[g]` density peaks among the important tokens of every group."""
        groups = Groups.of(tokens)
        keys, valid = tokens.signals.layer_keys, groups.valid
        assert keys is not None
        important = torch.maximum((valid.sum(1) * self.share).long(), k)
        stays = top_k(importance(tokens, groups), valid, important)
        distance, density = by_group(spread, groups.gather(keys.flatten(1)), valid, stays)
        centre = peaks_up_to(distance, density, stays, k, self.cutoff)
        nearest, owner = by_group(nearest_centre, distance, farthest_added(distance, centre, stays, k))
        owner = owner.masked_fill(~valid, DROPPED)
        gives = (stays | (nearest <= self.recovery * self.cutoff)) & valid
        weight = mean(owner.masked_fill(~gives, DROPPED), valid)
        return make_plan(tokens, groups, owner, weight)


def importance(tokens: Tokens, groups: Groups) -> Float[Tensor, "G M"]:
    """EUTI: what the mean visual query attends to, times the norm of the hidden state."""
    queries, keys = tokens.signals.plain_queries, tokens.signals.plain_keys
    assert queries is not None and keys is not None
    valid: Bool[Tensor, "G M"] = groups.valid
    asked = groups.gather(queries.float()).sum(1) / valid.sum(1)[:, None, None]
    mine = groups.gather(keys.float()).repeat_interleave(queries.shape[1] // keys.shape[1], 2)
    logits = torch.einsum("ghd,gmhd->ghm", asked, mine).masked_fill(~valid[:, None], -torch.inf)
    norm: Tensor = groups.gather(tokens.x.float()).norm(dim=-1)
    return logits.softmax(-1).mean(1) * norm
