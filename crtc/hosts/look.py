"""Where a question looks: the attention of one pass of the stock language model over a coarse plan.

Every layer's attention is reduced as soon as it is computed, and only for the queries that ask.
"""

import inspect
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.hosts.attention import QUERIES_AT_ONCE, Attended, attended
from crtc.hosts.layers import shown_layers
from crtc.hosts.mass import biased_masks, check_attention
from crtc.hosts.prompt import columns, shorten
from crtc.hosts.vlm import Encoded
from crtc.tokens import TEXT, Plan


@torch.no_grad()
def question_attention(encoded: Encoded, plan: Plan, *, seen: Bool[Tensor, " N"] | None = None) -> Float[Tensor, " N"]:
    """Squared attention that the words behind the visual tokens pay to each of these, all layers and heads.

    The model runs once on the shortened prompts, with mass, at the positions of the full ones. Squares, because a sum
    is mostly what many heads leave evenly on everything; where a head looks, it looks hard. What a slot receives is
    spread evenly over its members; dropped and context tokens have 0.

    Args:
        encoded: the prompts.
        plan: a coarse one, of few tokens.
        seen: text that may ask, answers not among it; all without. Where no word behind the visual tokens of a prompt
            may, all its other words ask.

    Raises:
        ValueError: if the plan is of other tokens, `seen` is no mask of them, or the model has layers whose attention
            reads no additive mask, or more than that.
    """
    model = encoded.model
    check_attention(model)
    layers = shown_layers(model)
    asks = _asks(encoded, seen)
    taken = inspect.signature(model.base_model.forward).parameters
    # a cache, labels and options of `generate` are for the call that answers
    told = {name: value for name, value in encoded.inputs.items() if name in taken and isinstance(value, Tensor)}
    encoded = replace(encoded, inputs={name: value for name, value in told.items() if name != "labels"})
    order = columns(encoded, plan)
    asking = asks.gather(1, order.clamp(min=0)) & (order >= 0)
    index = asking.int().argsort(dim=1, descending=True, stable=True)[:, : int(asking.sum(1).max())]
    keep = partial(_squares, asking=index, valid=asking.gather(1, index))

    inputs = shorten(encoded, plan, mass=True, positions="keep")
    mask = inputs["attention_mask"]
    if isinstance(mask, Tensor) and mask.ndim == 2:  # of which the model may make no mask of logits, or none at all
        inputs["attention_mask"] = biased_masks(model, inputs, torch.zeros(order.shape, device=order.device))
    calls: list[Float[Tensor, "B S"]] = []
    with ExitStack() as stack:
        for _, module in layers:
            stack.enter_context(attended(module, calls, keep))
        # not the model itself, whose hooks may be those that compress: this is a call inside another
        model.base_model.forward(**inputs, use_cache=False)
    if len(calls) != len(layers):
        raise ValueError(
            f"{type(model).__name__} showed attention {len(calls)} times in {len(layers)} layers, expected once in each"
        )
    return _spread(encoded, plan, order, torch.stack([call.to(order.device) for call in calls]).sum(0))


def _asks(encoded: Encoded, seen: Bool[Tensor, " N"] | None) -> Bool[Tensor, "B L"]:
    """Columns of the words that ask, in the full prompts."""
    tokens, ids = encoded.tokens, encoded.inputs["input_ids"]
    text = tokens.kind == TEXT
    number = torch.arange(len(tokens), device=text.device)
    last = number.new_full((len(ids),), -1)
    last = last.scatter_reduce(0, tokens.sequence[~text], number[~text], "amax")
    if seen is not None:
        if seen.shape != text.shape or seen.dtype != torch.bool:
            raise ValueError(f"seen is {tuple(seen.shape)} of {seen.dtype}, expected bool ({len(tokens)},)")
        text = text & seen
    behind = text & (number > last[tokens.sequence])
    some = torch.bincount(tokens.sequence[behind], minlength=len(ids)) > 0
    asks = torch.zeros_like(ids, dtype=torch.bool)
    return asks.index_put((tokens.sequence, encoded.column), torch.where(some[tokens.sequence], behind, text))


def _squares(call: Attended, *, asking: Int[Tensor, "B A"], valid: Bool[Tensor, "B A"]) -> Float[Tensor, "B S"]:
    """What the queries that ask pay to every column, squared, summed over them and the heads."""
    asking, valid = asking.to(call.queries.device), valid.to(call.queries.device)
    total = torch.zeros(call.keys.shape[0], call.keys.shape[2], device=asking.device)
    for start in range(0, asking.shape[1], QUERIES_AT_ONCE):
        some = slice(start, start + QUERIES_AT_ONCE)
        total = total + (call.paid(asking[:, some]).square() * valid[:, None, some, None]).sum((1, 2))
    return total


def _spread(
    encoded: Encoded, plan: Plan, order: Int[Tensor, "B S"], looks: Float[Tensor, "B S"]
) -> Float[Tensor, " N"]:
    """From columns of the short prompts to slots, and to their members."""
    row, short = (order >= 0).nonzero(as_tuple=True)
    full = looks.new_zeros(encoded.inputs["input_ids"].shape).index_put((row, order[row, short]), looks[row, short])
    slots = full[encoded.tokens.sequence[plan.kept], encoded.column[plan.kept]]
    joined = (plan.slot >= 0).nonzero()[:, 0]
    owner = plan.slot[joined]
    share = slots / torch.bincount(owner, minlength=len(slots))
    return looks.new_zeros(len(plan.slot)).index_put((joined,), share[owner])
