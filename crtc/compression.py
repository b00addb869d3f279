"""The one-line entry: a model, its inputs, a method, and how much to keep."""

import functools
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from crtc import cost, counts
from crtc.hosts import (
    Cuts,
    Encoded,
    Positions,
    Turn,
    answer,
    cache_of,
    check_attention,
    check_cache,
    check_model,
    check_positions,
    columns,
    cut_inside,
    decoder_layers,
    encode,
    go_on,
    question_attention,
    shorten,
)
from crtc.merging import spread
from crtc.methods import Method, get_method
from crtc.methods.method import keep_all
from crtc.tokens import LAYER_SIGNALS, SIGNALS, Plan, Tokens

DEFAULT = "reinforced"
"""What compresses where nothing else is said: no training, no width, no question."""


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
    method: Method | str = DEFAULT,
    *,
    keep: float | None = None,
    count: int | None = None,
    mass: bool = False,
    positions: Positions = "keep",
) -> Compressed:
    """Inputs with fewer visual tokens that the stock model takes.

    Without `mass` they suit `model(**x)` and `model.generate(**x)`, but for `use_cache=False` while positions are kept:
    without a cache stock models read gaps in positions as borders between packed prompts. Generating over them with
    beams consumes them (the stock model repeats the image rows in place). With `mass` they hold a 4-D attention mask
    and suit `model(**x)` only, since the mask would have to grow with every token. In all these cases `compressed`
    generates.

    Args:
        model: a stock vision-language model.
        inputs: what its processor gave.
        method: a method, or its name in the catalogue; one that is untrained and suits every model, without.
        keep: fraction of every image's (or tile's, or clip's) tokens to keep.
        count: whole tokens of every image to keep.
        mass: whether merged tokens draw as much attention as those they stand for.
        positions: `"keep"` keeps those of the full prompt, as scorers are trained; `"repack"` numbers them anew.

    Raises:
        ValueError: if the model is not supported, there are no images, not exactly one of `keep` and `count` is
            given, or the method needs what this model does not give or acts inside the language model.
    """
    check_model(model)
    check_positions(positions)
    chosen = _resolve(method)
    if chosen.cuts(_depth(model)):
        raise ValueError(f"{type(chosen).__name__} acts inside the language model, expected it in `compressed`")
    encoded, plan = _plan(model, inputs, chosen, keep, count)
    short = shorten(encoded, plan, mass=mass, positions=positions)
    return Compressed(short, encoded.tokens, plan, columns(encoded, plan))


@dataclass
class Handle:
    """What the last call inside `compressed` did.

    Args:
        tokens: what the method saw.
        plan: what it answered; of all tokens, what is left behind the last cut, if it acts inside the language model.
        counts: visual tokens of every group (an image, a clip) that each layer of the language model reads.
        turn: what the cache holds after `generate`, if the caller has it; the next turn of the dialogue goes on there.
    """

    tokens: Tokens | None = None
    plan: Plan | None = None
    counts: Int[Tensor, "depth G"] | None = None
    turn: Turn | None = None

    @property
    def layer_equivalent(self) -> Float[Tensor, " G"] | None:
        """Mean over the layers of the visual tokens that each reads, for every group."""
        return None if self.counts is None else cost.layer_equivalent(self.counts)


@contextmanager
def compressed(
    model: Any,
    method: Method | str = DEFAULT,
    *,
    keep: float | None = None,
    count: int | None = None,
    mass: bool = True,
    positions: Positions = "keep",
) -> Iterator[Handle]:
    """Within the context `model.generate(**inputs)` and `model(**inputs)` compress their images first.

    `generate` answers with the full prompt in front of the new tokens, logits of a plain call are short. Given the
    cache of its last answer, the dialogue so far and the pixels of new images only, it reads only what is new. The
    model gets hooks and a `generate` of its own, which are gone after the context, also after an exception. Decoding by
    hand on a cache is refused: use `generate`. Stopping criteria and logits processors are shown the full prompt, a
    streamer the short one, unless it skips prompts. Calls of `generate` from several threads take turns.

    A method that acts inside the language model drops tokens between its layers, at the positions of the full prompt;
    logits keep the length of the prompt. `count` is then the mean over the layers, see `InsideMethod`. A dialogue
    cannot go on from its cache.

    Args:
        model: a stock vision-language model.
        method: a method, or its name in the catalogue; one that is untrained and suits every model, without.
        keep: fraction of every image's (or tile's, or clip's) tokens to keep.
        count: whole tokens of every image to keep.
        mass: whether merged tokens draw as much attention as those they stand for.
        positions: `"keep"` keeps those of the full prompt, as scorers are trained; `"repack"` numbers them anew.

    Raises:
        ValueError: as `compress`.
    """
    check_model(model)
    check_positions(positions)
    chosen = _resolve(method)
    inside = bool(chosen.cuts(_depth(model)))
    if inside:
        decoder_layers(model)  # a wrong model fails here, not later
        if positions == "repack":
            raise ValueError(f"positions is {positions!r}, but {type(chosen).__name__} keeps those of the prompt")
    elif mass:
        check_attention(model)
    counts.resolve(torch.empty(0, dtype=torch.long), keep=keep, count=count)  # a wrong amount fails here, not later
    stock = model.generate
    handle, turns, generating = Handle(), threading.Lock(), 0  # number of the thread that generates

    def plan(inputs: Mapping[str, Any]) -> tuple[Encoded, Plan]:
        encoded, found = _plan(model, inputs, chosen, keep, count)
        handle.tokens, handle.plan = encoded.tokens, found
        handle.counts = found.num_kept[None].repeat(_depth(model), 1)
        return encoded, found

    def note(cuts: Cuts) -> None:
        handle.counts, handle.plan = cuts.counts, cuts.plan

    @functools.wraps(stock)
    def generate_short(*args: Any, **kwargs: Any) -> Any:
        nonlocal generating
        if generating == threading.get_ident():
            return stock(*args, **kwargs)
        with turns:
            generating = threading.get_ident()
            try:
                return generate_alone(*args, **kwargs)
            finally:
                generating = 0

    def generate_alone(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(stock).bind(*args, **kwargs).arguments
        more = given.pop("kwargs", {})
        inputs = {**given, **more}
        if "inputs" in inputs:
            inputs["input_ids"] = inputs.pop("inputs")
        cache, turn = cache_of(inputs), handle.turn
        handle.turn = None
        if turn is not None and cache is turn.cache and (read := int(cache.get_seq_length())):
            try:
                output, handle.turn = go_on(turn, inputs, plan, model=model, mass=mass, positions=positions)
            finally:
                if int(cache.get_seq_length()) == read:  # else what failed on the way left a cache that nobody knows
                    handle.turn = turn
            return output
        check_cache(cache)
        if inside:
            with torch.no_grad():
                encoded = encode(model, inputs)
            handle.tokens = encoded.tokens
            whole = keep_all(encoded.tokens)
            with inside_of(encoded, chosen, keep=keep, count=count, mass=mass) as cuts:
                options = {"disable_compile": True}  # a compiled decoding step would not see our hooks
                output, _ = answer(encoded, whole, mass=False, positions="keep", options=options)
            note(cuts)
            return output
        with torch.no_grad():
            encoded, chosen_plan = plan(inputs)
        output, handle.turn = answer(encoded, chosen_plan, mass=mass, positions=positions, options={})
        return output

    def shorten_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if generating == threading.get_ident():
            return None
        if generating:
            raise ValueError(f"thread {generating} generates on this model, expected plain calls before or after it")
        inputs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        check_cache(cache_of(inputs))
        if inside:
            encoded = encode(model, inputs)
            handle.tokens = encoded.tokens
            cuts = stack.enter_context(inside_of(encoded, chosen, keep=keep, count=count, mass=mass))
            stack.callback(lambda: note(cuts) if cuts.plans else None)
            return (), shorten(encoded, keep_all(encoded.tokens), mass=False, positions="keep")
        return (), shorten(*plan(inputs), mass=mass, positions=positions)

    def end_call(module: nn.Module, args: Any, output: Any) -> None:
        if not generating:
            stack.close()

    stack = ExitStack()
    before = dict(model.__dict__)
    hook = model.register_forward_pre_hook(shorten_call, with_kwargs=True)
    ends = model.register_forward_hook(end_call, always_call=True)
    model.generate = generate_short
    try:
        yield handle
    finally:
        stack.close()
        hook.remove()
        ends.remove()
        if "generate" in before:  # somebody else's, such as an accelerator's
            model.generate = before["generate"]
        else:
            del model.generate


def inside_of(
    encoded: Encoded,
    method: Method,
    *,
    keep: float | None = None,
    count: int | None = None,
    mass: bool = False,
    seen: Bool[Tensor, " N"] | None = None,
) -> AbstractContextManager[Cuts]:
    """The context in which a method drops tokens between the layers of the model that encoded some prompts.

    Args:
        encoded: the prompts.
        method: with `cuts`.
        keep: fraction of every group, in the method's unit.
        count: whole tokens of every group, in the method's unit.
        mass: whether later layers add log(size) to the logits of a kept token's key column.
        seen: tokens that the method may see; all without.

    Raises:
        ValueError: as `compress`, or if the method cannot spend as little, or the model cannot lose tokens on the way.
    """
    depth, sizes = _depth(encoded.model), encoded.tokens.group_sizes
    left = method.cut_counts(counts.resolve(sizes, keep=keep, count=count), sizes, depth)

    def choose(tokens: Tokens, cut: int) -> Plan:
        plan: Plan = method.to(tokens.x.device)(tokens, left[cut].to(tokens.x.device).minimum(tokens.group_sizes))
        return plan

    return cut_inside(
        encoded,
        method.cuts(depth),
        choose,
        [name for name in LAYER_SIGNALS if name in method.needs],
        own=method.reads_own_layer,
        mass=mass,
        seen=seen,
    )


def _depth(model: Any) -> int:
    return int(model.get_decoder().config.get_text_config().num_hidden_layers)


def _plan(
    model: Any, inputs: Mapping[str, Any], method: Method, keep: float | None, count: int | None
) -> tuple[Encoded, Plan]:
    encoded = encode(model, inputs, [name for name in SIGNALS if name in method.needs])
    k = counts.resolve(encoded.tokens.group_sizes, keep=keep, count=count)
    method = method.to(k.device)
    if bool((k == encoded.tokens.group_sizes).all()):  # nothing is chosen, so nothing need be looked at
        return encoded, keep_all(encoded.tokens)
    tokens = looked(encoded, method, encoded.tokens)[0]
    return replace(encoded, tokens=tokens), method(tokens, k)


def looked(
    encoded: Encoded, method: Method, tokens: Tokens, seen: Bool[Tensor, " N"] | None = None
) -> tuple[Tokens, float]:
    """The tokens with what a first look of the language model tells, where a method asks for it, and what it read.

    Args:
        encoded: the prompts.
        method: that plans.
        tokens: what it sees of them.
        seen: which tokens of the prompts these are; all without.

    Returns:
        Tokens, and visual tokens per group that the look read, 0 without.
    """
    first = method.first_plan(tokens)
    if first is None:
        return tokens, 0.0
    whole = spread(first, tokens, encoded.tokens, torch.arange(tokens.num_groups, device=tokens.x.device))
    attention = question_attention(encoded, whole, seen=seen)
    attention = attention if seen is None else attention[seen]
    read = float(first.num_kept.double().mean())
    return replace(tokens, signals=replace(tokens.signals, question_attention=attention)), read


def _resolve(method: Method | str) -> Method:
    return get_method(method) if isinstance(method, str) else method
