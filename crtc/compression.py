"""The one-line entry: a model, its inputs, a method, and how much to keep."""

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from crtc import counts
from crtc.hosts import (
    Encoded,
    Positions,
    Turn,
    answer,
    check_cache,
    check_model,
    columns,
    default_positions,
    encode,
    go_on,
    shorten,
)
from crtc.methods import Method, get_method
from crtc.tokens import SIGNALS, Plan, Tokens


class Compressed(dict[str, Any]):
    """Model inputs of shorter prompts, and how they came about.

    Args:
        inputs: for `model(**inputs)`.
        tokens: what the method saw.
        plan: what it answered.
        order: for every column of the short prompts its column in the full ones, -1 where padded.
    """

    def __init__(self, inputs: Mapping[str, Any], tokens: Tokens, plan: Plan, order: Int[Tensor, "B S"]):
        super().__init__(inputs)
        self.tokens, self.plan, self.order = tokens, plan, order


def compress(
    model: Any,
    inputs: Mapping[str, Any],
    method: Method | str,
    *,
    keep: float | None = None,
    count: int | None = None,
    mass: bool = False,
    positions: Positions | None = None,
) -> Compressed:
    """Inputs with fewer visual tokens that the stock model takes.

    Without `mass` they suit `model(**x)` and `model.generate(**x)`; generating over them with beams consumes them (the
    stock model repeats the image rows in place). With `mass` they hold a 4-D attention mask and suit `model(**x)` only:
    to generate, where the mask must grow with every token, use `compressed`.

    Args:
        model: a stock vision-language model.
        inputs: what its processor gave.
        method: a method, or its name in the catalogue.
        keep: fraction of every image's (or tile's, or clip's) tokens to keep.
        count: whole tokens of every image to keep.
        mass: whether merged tokens draw as much attention as those they stand for.
        positions: `"repack"` numbers positions anew, `"keep"` keeps those of the full prompt. Without, they are kept
            where positions are those of time, row and column (M-RoPE), and packed elsewhere.

    Raises:
        ValueError: if the model is not supported, there are no images, not exactly one of `keep` and `count` is
            given, or the method needs what this model does not give.
    """
    encoded, plan = _plan(model, inputs, _resolve(method), keep, count)
    positions = positions or default_positions(model)
    short = shorten(encoded, plan, mass=mass, positions=positions)
    return Compressed(short, encoded.tokens, plan, columns(encoded, plan))


@dataclass
class Handle:
    """What the last call inside `compressed` did.

    Args:
        tokens: what the method saw.
        plan: what it answered.
        turn: what the cache holds after `generate`, if the caller has it; the next turn of the dialogue goes on there.
    """

    tokens: Tokens | None = None
    plan: Plan | None = None
    turn: Turn | None = None


@contextmanager
def compressed(
    model: Any,
    method: Method | str,
    *,
    keep: float | None = None,
    count: int | None = None,
    mass: bool = True,
    positions: Positions | None = None,
) -> Iterator[Handle]:
    """Within the context `model.generate(**inputs)` and `model(**inputs)` compress their images first.

    `generate` answers with the full prompt in front of the new tokens, logits of a plain call are short. Given the
    cache of its last answer, the dialogue so far and the pixels of new images only, it reads only what is new. The
    model gets one hook and a `generate` of its own; both are gone after the context, also after an exception. Decoding
    by hand on a cache is refused: use `generate`. A streamer is shown the short prompt, unless it skips prompts.

    Args:
        model: a stock vision-language model.
        method: a method, or its name in the catalogue.
        keep: fraction of every image's (or tile's, or clip's) tokens to keep.
        count: whole tokens of every image to keep.
        mass: whether merged tokens draw as much attention as those they stand for.
        positions: `"repack"` numbers positions anew, `"keep"` keeps those of the full prompt. Without, they are kept
            where positions are those of time, row and column (M-RoPE), and packed elsewhere.

    Raises:
        ValueError: as `compress`.
    """
    check_model(model)
    way = positions or default_positions(model)
    chosen = _resolve(method)
    counts.resolve(torch.empty(0, dtype=torch.long), keep=keep, count=count)  # a wrong amount fails here, not later
    stock = model.generate
    handle, generating = Handle(), False

    def plan(inputs: Mapping[str, Any]) -> tuple[Encoded, Plan]:
        encoded, found = _plan(model, inputs, chosen, keep, count)
        handle.tokens, handle.plan = encoded.tokens, found
        return encoded, found

    @functools.wraps(stock)
    def generate_short(*args: Any, **kwargs: Any) -> Any:
        nonlocal generating
        if generating:
            return stock(*args, **kwargs)
        given = inspect.signature(stock).bind(*args, **kwargs).arguments
        inputs = {**given, **given.pop("kwargs", {})}
        if "inputs" in inputs:
            inputs["input_ids"] = inputs.pop("inputs")
        cache, turn = inputs.get("past_key_values"), handle.turn
        generating = True
        try:
            if turn is not None and cache is turn.cache and int(cache.get_seq_length()):
                output, handle.turn = go_on(turn, inputs, plan, model=model, mass=mass, positions=way)
                return output
            check_cache(cache)
            with torch.no_grad():
                encoded, chosen_plan = plan(inputs)
            output, handle.turn = answer(encoded, chosen_plan, mass=mass, positions=way, options={})
            return output
        finally:
            generating = False

    def shorten_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if generating:
            return None
        inputs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        check_cache(inputs.get("past_key_values"))
        return (), shorten(*plan(inputs), mass=mass, positions=way)

    before = dict(model.__dict__)
    hook = model.register_forward_pre_hook(shorten_call, with_kwargs=True)
    model.generate = generate_short
    try:
        yield handle
    finally:
        hook.remove()
        if "generate" in before:  # somebody else's, such as an accelerator's
            model.generate = before["generate"]
        else:
            del model.generate


def _plan(
    model: Any, inputs: Mapping[str, Any], method: Method, keep: float | None, count: int | None
) -> tuple[Encoded, Plan]:
    encoded = encode(model, inputs, [name for name in SIGNALS if name in method.needs])
    k = counts.resolve(encoded.tokens.group_sizes, keep=keep, count=count)
    return encoded, method(encoded.tokens, k)


def _resolve(method: Method | str) -> Method:
    return get_method(method) if isinstance(method, str) else method
