"""SparseVLM: text that looks at the image rates it, and some of what goes is recycled (2410.04417)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.merging import make_plan, mean, nearest_kept
from crtc.methods.dpcknn import density_peaks
from crtc.methods.inside import InsideMethod, attention_paid, text_behind
from crtc.selection import top_k
from crtc.tokens import DROPPED, Groups, Plan, Tokens


class SparseVLM(InsideMethod):
    """Keeps the tokens that raters attend to most, in three stages; the best of the others become a few clusters.

    Raters are the words behind the image whose softmax likeness to the visual tokens, mean over these, is above
    average. Of d deleted tokens the top int(0.3 d) + 1 = m are clustered by DPC-kNN to int(m / 10) + 1 means. The
    schedule is the code's for "192", 300 / 200 / 110 of 576, which layers 2, 6 and 15 of 32 drop on their way out, so
    that layers 3, 7 and 16 are the first to read less: 202.8 tokens in the mean over the layers, where the authors
    count 191.0 as if the layers themselves read less already, and no clusters.

    Deviations: counts include the clusters, where the code adds them on top; one schedule is scaled for all counts;
    a cluster stands at the place of its centre, where the code puts clusters behind the kept tokens and numbers
    positions anew; raters are chosen from the visual tokens that are left, where the code chooses once; the paper's
    number of deleted tokens by the rank of the attention is not here.

    Args:
        layers: three of them.
        matched: whether amounts are the mean over all layers, else what is left behind the last stage.
        recycle: whether deleted tokens become clusters.
    """

    source = "SparseVLM, arXiv 2410.04417"
    licence = "Apache-2.0"
    family = "saliency"
    needs = frozenset({"layer_queries", "layer_keys", "embeddings", "text"})
    question_aware = True
    published_layers = (3, 7, 16)
    shares = (300 / 576, 200 / 576, 110 / 576)

    def __init__(self, *, layers: Sequence[int] | None = None, matched: bool = True, recycle: bool = True):
        super().__init__(layers=layers, matched=matched)
        self.recycle = recycle
        self.uses_order = recycle  # alone in its neighbourhood every token is as dense as any other

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep `k[g]` tokens of every group, clusters among them."""
        groups = Groups.of(tokens)
        score = groups.gather(attention_paid(tokens, raters(tokens)))
        sizes = groups.valid.sum(1)
        split = [split_of(int(n), int(wanted)) if self.recycle else (int(wanted), 0, 0)
                 for n, wanted in zip(sizes, k, strict=True)]  # fmt: skip
        best, recycled, clusters = torch.tensor(split, device=k.device).unbind(1)
        top = top_k(score, groups.valid, best)
        again = top_k(score, groups.valid & ~top, recycled)
        x = groups.gather(tokens.x)
        place = torch.arange(top.shape[1], device=k.device).expand_as(top)
        owner = torch.where(top, place, DROPPED)
        for number in clusters.nonzero()[:, 0].tolist():
            members = again[number].nonzero()[:, 0]
            real = torch.ones(1, len(members), dtype=torch.bool, device=k.device)
            owns = density_peaks(x[number, members][None], real, clusters[number : number + 1], None)
            owner[number, members] = members[owns[0]]
        weight = mean(owner, groups.valid)
        kept = (owner == place) & groups.valid
        owner = torch.where(owner >= 0, owner, nearest_kept(x, kept, groups.valid))
        return make_plan(tokens, groups, owner, weight)


def raters(tokens: Tokens) -> Bool[Tensor, " N"]:
    """Words behind the image that are more like its tokens than the average word."""
    embeddings, behind = tokens.signals.embeddings, text_behind(tokens)
    assert embeddings is not None
    chosen = torch.zeros_like(behind)
    for number in torch.unique_consecutive(tokens.sequence):
        words = (behind & (tokens.sequence == number)).nonzero()[:, 0]
        visual = (tokens.candidates & (tokens.sequence == number)).nonzero()[:, 0]
        likeness: Float[Tensor, " T"] = (
            (embeddings[visual].float() @ embeddings[words].float().T).softmax(1).mean(0)
            if len(visual)
            else torch.ones(len(words), device=words.device)
        )
        above = likeness > likeness.mean()
        chosen[words[above if bool(above.any()) else torch.ones_like(above)]] = True
    return chosen


def split_of(size: int, k: int) -> tuple[int, int, int]:
    """How many of `size` tokens stay, are recycled, and into how many clusters, so that stay and clusters are `k`."""
    for best in range(k - 1, 0, -1) if k < size else ():
        recycled = int((size - best) * 0.3) + 1
        clusters = int(recycled / 10) + 1
        if best + clusters == k:
            return best, recycled, clusters
    return k, 0, 0
