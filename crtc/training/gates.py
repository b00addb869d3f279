"""Gates of training: how a count of tokens, which has no gradient, becomes something that has one.

Each takes what the scorer says of a batch of tokens and answers with the rows that the language model reads.

- `assignment`: the deployed clustering itself, with a straight-through soft assignment. Prompts are as short as at use.
- `mask`: a straight-through mask that multiplies the softmaxed attention weights of visual keys and renormalises: the
  bias of mass preservation with a size of 1 for kept tokens and nearly 0 for dropped ones, whose gradient is the same
  as that of the weight. Full length.
- `noise`: variance-preserving noise in the place of what a soft top-k drops (DiffPrune, arXiv 2605.28051). Full length.
- `scale`: a soft top-k multiplies the tokens, and a penalty that grows pulls it to the hard one (VisionSelector, arXiv
  2510.16598). Full length.
- `pool`: the deployed plan, whose kept rows have the gradient of a product with tanh of their score, as in the pooling
  layers of PyG; dropped tokens get none. Prompts are as short as at use.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.methods.learned import Importance, Learned
from crtc.methods.method import keep_all
from crtc.methods.reinforced_scorer import Placed, ReinforcedScorer
from crtc.selection import top_k
from crtc.tokens import Plan, Tokens, apply

FAINT = 1e-4
"""Weight of a masked token: small enough not to be read, large enough for its gradient."""


@dataclass(frozen=True)
class Gated:
    """What a gate lets the language model read.

    Args:
        plan: with the sizes of its slots.
        rows: content of its slots.
        penalty: what the gate adds to the loss.
    """

    plan: Plan
    rows: Float[Tensor, "K D"]
    penalty: Float[Tensor, ""] | float = 0.0


Gate = Callable[[Any, Any, Tokens, Int[Tensor, " G"], float, torch.Generator], Gated]
"""Scorer, the importance that it gives, tokens, counts, progress in [0, 1], randomness."""


def assignment(
    scorer: ReinforcedScorer,
    said: Placed,
    tokens: Tokens,
    k: Int[Tensor, " G"],
    progress: float,
    random: torch.Generator,
) -> Gated:
    """Hard clusters forward, soft assignment backward: tokens learn what they would add to each slot.

    `c_j = sum_i A_ij w_i x_i / sum_i A_ij w_i` and mass `sum_i A_ij`, with `A = softmax_j(-d(i, j) / tau)`, where d is
    the squared distance to the anchor of a slot, in Ward clusters to their mean.
    """
    found = said.clusters(k, scorer.design.selector)
    soft = (-found.distance / said.temperature).masked_fill(~found.real[:, None], -torch.inf).softmax(-1)
    hard = F.one_hot(found.nearest, soft.shape[-1]).to(soft.dtype)
    share = (hard + soft - soft.detach()) * said.groups.valid[..., None]
    weight = share * said.logit.exp()[..., None]
    x = said.groups.gather(tokens.x.float())
    rows = weight.transpose(1, 2) @ x / weight.sum(1).clamp(min=1e-6)[..., None]
    plan = scorer.plan_from(said, tokens, k, found)
    content = rows[found.real]
    if not scorer.design.merge:  # at use dropped tokens give no content
        content = content + (tokens.x[plan.kept].float() - content).detach()
    return Gated(replace(plan, size=share.sum(1)[found.real].clamp(min=1e-3)), content.to(tokens.x.dtype))


def noise(
    scorer: Learned, said: Importance, tokens: Tokens, k: Int[Tensor, " G"], progress: float, random: torch.Generator
) -> Gated:
    """`sqrt(a) x + sqrt(1 - a) sigma eps` on all tokens, `a` a soft top-k whose temperature falls from 2 to 0.1."""
    alpha = soft_top_k(said.logit / (2.0 * 0.05**progress), said.groups.valid, k)
    x = said.groups.gather(tokens.x.float())
    valid = said.groups.valid[..., None]
    spread = (x.square().sum((1, 2), keepdim=True) / (valid.sum(1, keepdim=True) * x.shape[-1])).sqrt()
    epsilon = torch.randn(x.shape, generator=random).to(x.device)
    alpha = alpha[..., None].clamp(1e-6, 1 - 1e-6)
    rows = alpha.sqrt() * x + (1 - alpha).sqrt() * spread * epsilon
    return Gated(keep_all(tokens), rows[said.groups.valid].to(tokens.x.dtype))


def mask(
    scorer: Learned, said: Importance, tokens: Tokens, k: Int[Tensor, " G"], progress: float, random: torch.Generator
) -> Gated:
    """Weights of 1 for the top-k and `FAINT` for the rest forward, a soft top-k backward; temperature from 1 to 0.1."""
    soft = soft_top_k(said.logit / 0.1**progress, said.groups.valid, k)
    hard = top_k(said.logit.detach(), said.groups.valid, k).to(soft.dtype)
    weight = FAINT + (1 - FAINT) * (hard + soft - soft.detach())
    whole = keep_all(tokens)
    return Gated(replace(whole, size=weight[said.groups.valid]), tokens.x[whole.kept])


def scale(
    scorer: Learned, said: Importance, tokens: Tokens, k: Int[Tensor, " G"], progress: float, random: torch.Generator
) -> Gated:
    """`a x` on all tokens, `a` a soft top-k, and the binary cross-entropy to the hard top-k, weighted by 0.1 to 2."""
    inside = said.groups.valid
    soft = soft_top_k(said.logit, inside, k)
    hard = top_k(said.logit.detach(), inside, k).to(soft.dtype)
    rows = soft[..., None] * said.groups.gather(tokens.x.float())
    apart = F.binary_cross_entropy(soft[inside].clamp(1e-6, 1 - 1e-6), hard[inside])
    return Gated(keep_all(tokens), rows[inside].to(tokens.x.dtype), (0.1 + 1.9 * progress) * apart)


def pool(
    scorer: Learned, said: Importance, tokens: Tokens, k: Int[Tensor, " G"], progress: float, random: torch.Generator
) -> Gated:
    """Deployed rows forward, `tanh(score) x` backward: a frozen host takes kept tokens at the length that they have.

    Scores are standardised over their image, by numbers without gradient: sums over neighbours would saturate tanh.
    """
    plan = scorer.plan_from(said, tokens, k)
    inside = said.groups.valid
    with torch.no_grad():
        number = inside.sum(1, keepdim=True)
        mean = (said.logit * inside).sum(1, keepdim=True) / number
        spread = (((said.logit - mean) * inside).square().sum(1, keepdim=True) / number).sqrt().clamp(min=1e-6)
    score = ((said.logit - mean) / spread)[inside].tanh()
    gate = score.new_zeros(len(tokens)).index_put((said.groups.index[inside],), score)
    gate = gate[plan.kept, None]
    rows = apply(plan, tokens.x).float() * (1 + gate - gate.detach())
    return Gated(plan, rows.to(tokens.x.dtype))


def soft_top_k(score: Float[Tensor, "G M"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]) -> Float[Tensor, "G M"]:
    """`sigmoid(score + t)` with the threshold t of every group such that the sum is k; differentiated through t.

    Found by bisection; the implicit derivative of t is `-sum_i v_i ds_i / sum_i v_i` with `v = p (1 - p)`.
    """
    masked = score.masked_fill(~valid, -1e4)
    with torch.no_grad():
        low = -score.masked_fill(~valid, -torch.inf).amax(1, keepdim=True) - 20
        high = -score.masked_fill(~valid, torch.inf).amin(1, keepdim=True) + 20
        for _ in range(50):
            middle = (low + high) / 2
            few = torch.sigmoid(masked + middle).sum(1, keepdim=True) < k[:, None]
            low, high = torch.where(few, middle, low), torch.where(few, high, middle)
        threshold = (low + high) / 2
        slope = torch.sigmoid(masked + threshold)
        slope = slope * (1 - slope)
    shift = (slope * (masked - masked.detach())).sum(1, keepdim=True) / slope.sum(1, keepdim=True).clamp(min=1e-9)
    return torch.sigmoid(masked + threshold - shift)


GATES: dict[str, Gate] = {"assignment": assignment, "mask": mask, "noise": noise, "scale": scale, "pool": pool}
