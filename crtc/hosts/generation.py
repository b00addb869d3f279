"""Stock `generate` on shortened prompts, and on what follows them in a dialogue."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LogitsProcessorList, StoppingCriteriaList

from crtc.hosts.family import CACHES, cache_of, modalities, padding_id
from crtc.hosts.mass import masked, other_layers
from crtc.hosts.positions import Positions, rearranged
from crtc.hosts.prompt import column_bias, columns, shorten
from crtc.hosts.visual import PIXELS
from crtc.hosts.vlm import Encoded
from crtc.tokens import Plan


@dataclass(frozen=True)
class Turn:
    """What a cache holds after an answer, so that a dialogue can go on from it.

    Args:
        cache: keys and values of the short prompts and the answers.
        order: for every column of the short prompts its column in the full ones, -1 where padded.
        ids: of the full prompts.
        said: the full prompts and the answers, as `generate` gave them.
        position_ids: of the short prompts as `generate` read them.
        bias: on the columns of the short prompts.
    """

    cache: Any
    order: Int[Tensor, "B S"]
    ids: Int[Tensor, "B L"]
    said: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "*rest B S"]
    bias: Float[Tensor, "B S"] | None


def check_cache(cache: Any) -> None:
    """Raise `ValueError` if a cache holds tokens, which nobody can tell from those that were compressed."""
    if cache is not None and int(cache.get_seq_length()):
        raise ValueError(f"past_key_values holds {int(cache.get_seq_length())} tokens, expected an empty cache")


def generate(encoded: Encoded, plan: Plan, *, mass: bool, positions: Positions, **options: Any) -> Any:
    """Stock `model.generate` on shortened prompts, answering with the full prompts in front of the new tokens.

    With mass, the bias stays with the cached columns at every decoding step; beams, several answers per prompt, a
    static cache and prefilling in chunks work. `max_length` and `min_length` count the full prompt.

    Args:
        encoded: the prompts.
        plan: what becomes of their visual tokens.
        mass: as for `shorten`.
        positions: as for `shorten`.
        options: of `model.generate`.

    Raises:
        ValueError: as `shorten`, or if a cache that already holds tokens is given, or stock `generate` loses features.
    """
    return answer(encoded, plan, mass=mass, positions=positions, options=options)[0]


@torch.no_grad()
def answer(
    encoded: Encoded, plan: Plan, *, mass: bool, positions: Positions, options: dict[str, Any]
) -> tuple[Any, Turn | None]:
    """As `generate`, and the turn to go on from if a cache is in the caller's hands, with a row for every prompt."""
    options = {**encoded.inputs, **options}
    check_cache(cache_of(options))
    order = columns(encoded, plan)
    bias = column_bias(encoded, plan, order) if mass else None
    encoded = _counted(encoded, positions)
    short = shorten(encoded, plan, mass=False, positions=positions)
    inputs = {**options, **short}
    output = _generate(encoded.model, inputs, encoded.inputs["input_ids"], order >= 0, bias)
    cache = cache_of(options)
    if cache is None and not isinstance(output, Tensor):
        cache = cache_of(output)
    said = output if isinstance(output, Tensor) else output.sequences
    if cache is None or not _a_row_each(cache, len(said), len(order)):
        return output, None
    read = inputs.get("position_ids")
    if read is None:
        read = ((order >= 0).long().cumsum(-1) - 1).clamp(min=0)
    return output, Turn(cache, order, encoded.inputs["input_ids"], said, read, bias)


def _a_row_each(cache: Any, answers: int, prompts: int) -> bool:
    """Whether a cache holds every prompt once, not its beams or several answers."""
    keys = (getattr(layer, "keys", None) for layer in cache.layers)
    rows = {len(found) for found in keys if isinstance(found, Tensor) and found.ndim == 4}
    return answers == prompts and rows <= {prompts}


@torch.no_grad()
def go_on(
    turn: Turn,
    inputs: dict[str, Any],
    look: Callable[[dict[str, Any]], tuple[Encoded, Plan]],
    *,
    model: Any,
    mass: bool,
    positions: Positions,
) -> tuple[Any, Turn | None]:
    """Stock `generate` on a cache of compressed prompts: the full dialogue comes in, only its new end is read.

    Args:
        turn: what the cache holds.
        inputs: of `model.generate`: ids and mask of the whole dialogue so far, pixels of new images only.
        look: encodes new images and plans what becomes of their tokens.
        model: the host.
        mass: as for `shorten`.
        positions: as for `shorten`.

    Raises:
        ValueError: if the dialogue does not begin with the prompts of the cache and what was answered, or the model
            cannot read padding between turns.
    """
    ids, (rows, length) = inputs["input_ids"], turn.ids.shape
    read = int(turn.cache.get_seq_length()) - turn.order.shape[1]
    start = length + read  # first column that the model has not read
    if read < 0 or len(ids) != rows or ids.shape[1] <= start:
        raise ValueError(f"input_ids is {tuple(ids.shape)}, expected {rows} dialogues of more than {start} tokens")
    same = ids[:, :start] == turn.said[:, :start].to(ids.device)
    if not bool(same.all()):
        column = int((~same).any(0).nonzero()[0, 0])
        raise ValueError(
            f"input_ids differs in column {column} from the prompts and answers of the cache, expected the dialogue so "
            "far, token for token"
        )
    mask = inputs.get("attention_mask")
    inputs = {**inputs, "attention_mask": torch.ones_like(ids) if mask is None else mask}
    whole = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.shape == ids.shape}
    new = {**inputs, **{name: value[:, start:] for name, value in whole.items()}}
    order = torch.arange(ids.shape[1] - start, device=ids.device).expand(rows, -1)
    bias, short = order.new_zeros(order.shape, dtype=torch.float32), dict(new)
    if any(name.startswith((*PIXELS, "mm_encoder")) and value is not None for name, value in inputs.items()):
        encoded, plan = look({name: value for name, value in new.items() if name not in CACHES})
        encoded = _counted(encoded, positions)
        order = columns(encoded, plan)
        short = shorten(encoded, plan, mass=False, positions=positions)
        found = column_bias(encoded, plan, order) if mass else None
        bias = bias[:, : order.shape[1]] if found is None else found
    if bool((short["attention_mask"] == 0).any()) and (other := other_layers(model)):
        raise ValueError(
            f"rows of this turn are of unequal length, but layers of {', '.join(other)} would read the padding between "
            "turns, expected one row or equal lengths"
        )
    steps = torch.arange(1, read + 1, device=ids.device)
    head = torch.cat([turn.position_ids, turn.position_ids[..., -1:] + steps], -1)
    tail = short.get("position_ids")
    if tail is None:
        tail = (short["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
    answered = torch.arange(length, start, device=ids.device).expand(rows, -1)
    order = torch.cat([turn.order, answered, (order + start).masked_fill(order < 0, -1)], 1)
    position_ids = torch.cat([head, head[..., -1:] + 1 + tail], -1)
    before = F.pad(turn.bias, (0, read)) if turn.bias is not None else bias.new_zeros(rows, head.shape[-1])
    joined = torch.cat([before, bias], 1) if turn.bias is not None or bool((bias != 0).any()) else None
    fills = {"input_ids": padding_id(model)}
    full = {
        **{name: value for name, value in inputs.items() if name in short or name in CACHES},
        **{name: rearranged(value, order, fills.get(name, 0)) for name, value in whole.items()},
        "position_ids": position_ids,
    }
    if "mm_encoder_outputs" in short:
        full["mm_encoder_outputs"] = short["mm_encoder_outputs"]
    output = _generate(model, full, ids, full["attention_mask"].bool(), joined)
    said = output if isinstance(output, Tensor) else output.sequences
    whole_rows = _a_row_each(turn.cache, len(said), rows)
    return output, Turn(turn.cache, order, ids, said, position_ids, joined) if whole_rows else None


def _counted(encoded: Encoded, positions: Positions) -> Encoded:
    """The prompts with positions as `generate` counts them, where they are to be kept."""
    if positions != "keep" or encoded.inputs.get("position_ids") is not None:
        return encoded
    counted = (encoded.inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
    return replace(encoded, inputs={**encoded.inputs, "position_ids": counted})


@contextmanager
def _shown(model: Any, inputs: dict[str, Any]) -> Iterator[None]:
    """While the context lasts, a prompt whose features `generate` has lost on the way raises `ValueError`."""
    if not inputs.get("mm_encoder_outputs"):
        yield
        return
    placeholders = torch.tensor([getattr(model.config, f"{name}_token_id") for name in modalities(model)])

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids")
        if ids is None or ids.shape[1] == 1 or kwargs.get("mm_encoder_outputs"):  # decoding steps may be compiled
            return
        if bool(torch.isin(ids, placeholders.to(ids.device)).any()):
            raise ValueError(
                f"{type(model).__name__} would read placeholders as they are: generate lost the features that belong "
                "there, as transformers before 5.23 does in chunks, expected prefill_chunk_size=None"
            )

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _of_short_prompts(inputs: dict[str, Any], ids: Int[Tensor, "B L"], gone: int) -> dict[str, Any]:
    """Options that count or read the full prompt, such that they do so on the short one."""
    short = ids.shape[1] - gone

    def full(read: Tensor) -> Tensor:
        prompt = ids.to(read.device).repeat_interleave(len(read) // len(ids), 0)
        return torch.cat([prompt, read[:, short:]], 1)

    def shown(inner: Callable[..., Any]) -> Callable[..., Any]:
        return lambda read, *rest, **options: inner(full(read), *rest, **options)

    changed: dict[str, Any] = {}
    for name in ("max_length", "min_length"):
        if inputs.get(name) is not None:
            changed[name] = inputs[name] - gone
    for name, kind in (("stopping_criteria", StoppingCriteriaList), ("logits_processor", LogitsProcessorList)):
        if inputs.get(name):
            changed[name] = kind(map(shown, inputs[name]))
    if (allowed := inputs.get("prefix_allowed_tokens_fn")) is not None:
        changed["prefix_allowed_tokens_fn"] = lambda row, read: allowed(
            row, torch.cat([ids[row].to(read.device), read[short:]])
        )
    return changed


def _generate(model: Any, inputs: dict[str, Any], ids: Int[Tensor, "B L"], valid: Tensor, bias: Tensor | None) -> Any:
    """Generate on short prompts, and put the full ones back in front."""
    gone = ids.shape[1] - inputs["input_ids"].shape[1]
    inputs = {**inputs, **_of_short_prompts(inputs, ids, gone)}
    if (config := inputs.get("generation_config")) is not None:
        inputs["generation_config"] = config = copy.deepcopy(config)
    for name in ("max_length", "min_length"):  # where the call says nothing, its configuration does, then the model's
        lengths = [getattr(one, name) for one in (config, model.generation_config) if one is not None]
        length = next(filter(None, lengths), None)
        if length is not None and inputs.get(name) is None:
            if config is None:
                inputs[name] = length - gone
            else:
                setattr(config, name, length - gone)
    if bias is not None:  # a compiled decoding step would not see our hook
        if config is None:
            inputs["disable_compile"] = True
        else:
            config.disable_compile = True
    with masked(model, valid, bias), _shown(model, inputs):
        output = model.generate(**inputs)
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompt = ids.repeat_interleave(len(sequences) // len(ids), 0).to(sequences.device)
    sequences = torch.cat([prompt, sequences[:, ids.shape[1] - gone :]], 1)
    if isinstance(output, Tensor):
        return sequences
    output["sequences"] = sequences
    return output
