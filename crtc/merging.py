"""Mergers: who joins whom, with which share, as a `Plan`.

The groups lie side by side as `Groups` lays them out. An *owner* map `[G, M]` says for every token the place in its
group of the kept token that it joins: kept tokens own themselves, `DROPPED` joins none. It determines a plan.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.batching import sums
from crtc.tokens import DROPPED, Groups, Plan, Tokens


def make_plan(tokens: Tokens, groups: Groups, owner: Int[Tensor, "G M"], weight: Float[Tensor, "G M"]) -> Plan:
    """The plan of an owner map: `weight` is every token's share in the content of its slot."""
    places = torch.arange(owner.shape[1], device=owner.device)
    kept = (owner == places) & groups.valid
    number = kept.flatten().cumsum(0).view(kept.shape) - 1
    joins = groups.valid & (owner >= 0)
    slot = torch.full_like(tokens.group, DROPPED)
    slot[groups.index[joins]] = number.gather(1, owner.clamp(min=0))[joins]
    share = torch.zeros(len(tokens), dtype=weight.dtype, device=weight.device)
    share = share.index_put((groups.index[joins],), weight[joins])
    kept_tokens = groups.index[kept]
    size = torch.bincount(slot[slot >= 0], minlength=len(kept_tokens)).to(torch.float32)
    return Plan(kept_tokens, slot, share, size, tokens.group)


def nearest_kept(
    x: Float[Tensor, "G M D"], kept: Bool[Tensor, "G M"], valid: Bool[Tensor, "G M"]
) -> Int[Tensor, "G M"]:
    """Owner map: every token joins the kept token with the largest cosine, kept tokens own themselves."""
    unit = F.normalize(x.float(), dim=-1)
    width = int(kept.sum(1).max())
    anchors = kept.long().argsort(dim=1, descending=True, stable=True)[:, :width]
    real = kept.gather(1, anchors)
    likeness = unit @ unit.gather(1, anchors[..., None].expand(-1, -1, unit.shape[-1])).transpose(1, 2)
    owner = anchors.gather(1, likeness.masked_fill(~real[:, None], -torch.inf).argmax(-1))
    places = torch.arange(kept.shape[1], device=kept.device).expand_as(owner)
    return torch.where(kept, places, owner).masked_fill(~valid, DROPPED)


def give_mass(tokens: Tokens, groups: Groups, kept: Bool[Tensor, "G M"]) -> Plan:
    """Pruning: kept tokens keep their content, each other one gives its mass to the most similar kept token."""
    owner = nearest_kept(groups.gather(tokens.x), kept, groups.valid)
    return make_plan(tokens, groups, owner, kept.to(torch.float32))


def mean(
    owner: Int[Tensor, "G M"], valid: Bool[Tensor, "G M"], weight: Float[Tensor, "G M"] | None = None
) -> Float[Tensor, "G M"]:
    """Shares of a (weighted) mean: every slot's shares sum to one.

    Args:
        weight: importance of every token, positive; equal without.
    """
    joins = valid & (owner >= 0)
    own = torch.ones_like(joins, dtype=torch.float32) if weight is None else weight.float()
    own = own * joins
    target = owner.clamp(min=0)
    total = torch.zeros_like(own).scatter_add(1, target, own)
    return own / total.gather(1, target).masked_fill(~joins, 1)


def central_members(
    x: Float[Tensor, "G M D"], label: Int[Tensor, "G M"], valid: Bool[Tensor, "G M"]
) -> Int[Tensor, "G M"]:
    """Owner map: every token joins the member of its cluster that is nearest in direction to the cluster's mean.

    Args:
        x: features.
        label: of every token's cluster, in [0, M).
    """
    x = x.float()
    places = torch.arange(label.shape[1], device=label.device).expand_as(label)
    total = sums(x * valid[..., None], label, label.shape[1])
    mean = F.normalize(total, dim=-1).gather(1, label[..., None].expand_as(x))
    central = (F.normalize(x, dim=-1) * mean).sum(-1)
    best = central.new_full(central.shape, -torch.inf).scatter_reduce(
        1, label, central.masked_fill(~valid, -torch.inf), "amax"
    )
    near = valid & (central >= best.gather(1, label) - 1e-6)  # rounding must not decide between members alike
    first = torch.full_like(label, label.shape[1]).scatter_reduce(
        1, label, places.masked_fill(~near, label.shape[1]), "amin"
    )
    return first.gather(1, label).masked_fill(~valid, DROPPED)


def weighted_means(
    x: Float[Tensor, "G M D"], label: Int[Tensor, "G M"], valid: Bool[Tensor, "G M"], weight: Float[Tensor, "G M"]
) -> tuple[Float[Tensor, "G M D"], Int[Tensor, "G M"]]:
    """The weighted mean of every token's cluster, and the member nearest to it, the first of equals.

    Args:
        x: tokens; means have a gradient with respect to it.
        label: of every token's cluster, in [0, M).
        valid: False where padded.
        weight: of every token, not negative.
    """
    into = label[..., None].expand_as(x)
    total = torch.zeros_like(weight).scatter_add(1, label, weight).clamp(min=1e-12)
    mean = torch.zeros_like(x).scatter_add(1, into, weight[..., None] * x) / total[..., None]
    mean = mean.gather(1, into)
    away = (x - mean).detach().square().sum(-1).masked_fill(~valid, torch.inf)
    least = torch.full_like(away, torch.inf).scatter_reduce(1, label, away, "amin").gather(1, label)
    order = torch.arange(away.shape[1], device=away.device).expand_as(label)
    near = torch.where(away <= least, order, away.shape[1])
    return mean, torch.full_like(label, away.shape[1]).scatter_reduce(1, label, near, "amin").gather(1, label)


def centres(owner: Int[Tensor, "G M"]) -> Bool[Tensor, "G M"]:
    """The kept tokens of an owner map: those that own themselves."""
    return owner == torch.arange(owner.shape[1], device=owner.device)


def spread(plan: Plan, looks: Tokens, tokens: Tokens, image_of: Int[Tensor, " G"]) -> Plan:
    """A plan of some images for longer or more prompts that hold the same images.

    Args:
        plan: of `looks`.
        looks: what the method saw.
        tokens: the prompts that are to be shortened.
        image_of: for every group of `tokens` the group of `looks` with the same image.
    """
    groups = Groups.of(looks)
    joins = plan.slot >= 0
    owner = torch.full_like(plan.slot, -1)
    owner[joins] = groups.places(len(looks))[plan.kept][plan.slot[joins]]
    rows = torch.where(groups.valid, owner[groups.index], -1)[image_of]
    return make_plan(tokens, Groups.of(tokens), rows, groups.gather(plan.weight)[image_of])
