"""Stock `generate` on shortened prompts, and on what follows them in a dialogue."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crtc.hosts.family import padding_id
from crtc.hosts.mass import masked
from crtc.hosts.positions import Positions, rearranged
from crtc.hosts.prompt import column_bias, columns, shorten
from crtc.hosts.vlm import Encoded
from crtc.tokens import Plan


@dataclass(frozen=True)
class Turn:
    """What a cache holds after an answer, so that a dialogue can go on from it.

    Args:
        cache: keys and values of the short prompts and the answers.
        order: for every column of the short prompts its column in the full ones, -1 where padded.
        length: columns of the full prompts.
        position_ids: of the short prompts as `generate` read them.
        bias: on the columns of the short prompts.
    """

    cache: Any
    order: Int[Tensor, "B S"]
    length: int
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
        ValueError: as `shorten`, or if a cache that already holds tokens is given.
    """
    return answer(encoded, plan, mass=mass, positions=positions, options=options)[0]


@torch.no_grad()
def answer(
    encoded: Encoded, plan: Plan, *, mass: bool, positions: Positions, options: dict[str, Any]
) -> tuple[Any, Turn | None]:
    """As `generate`, and the turn to go on from if a cache is in the caller's hands."""
    options = {**encoded.inputs, **options}
    check_cache(options.get("past_key_values"))
    order = columns(encoded, plan)
    bias = column_bias(encoded, plan, order) if mass else None
    if encoded.inputs.get("position_ids") is None and positions == "keep":
        counted = (encoded.inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)  # as generate counts itself
        encoded = replace(encoded, inputs={**encoded.inputs, "position_ids": counted})
    short = shorten(encoded, plan, mass=False, positions=positions)
    inputs = {**options, **short}
    output = _generate(encoded.model, inputs, encoded.inputs["input_ids"], order >= 0, bias)
    cache = options.get("past_key_values")
    if cache is None and not isinstance(output, Tensor):
        cache = output.get("past_key_values")
    if cache is None:
        return output, None
    read = inputs.get("position_ids")
    if read is None:
        read = ((order >= 0).long().cumsum(-1) - 1).clamp(min=0)
    return output, Turn(cache, order, encoded.inputs["input_ids"].shape[1], read, bias)


@torch.no_grad()
def go_on(model: Any, turn: Turn, inputs: dict[str, Any]) -> tuple[Any, Turn]:
    """Stock `generate` on a cache of compressed prompts: the full dialogue comes in, only its new end is read.

    Args:
        model: the host.
        turn: what the cache holds.
        inputs: of `model.generate`: ids and mask of the whole dialogue so far, its images already in the cache.

    Raises:
        ValueError: if the dialogue does not begin with the prompts of the cache, or brings new images.
    """
    ids = inputs["input_ids"]
    if any(name.startswith(("pixel_values", "mm_encoder")) and value is not None for name, value in inputs.items()):
        raise ValueError("new images come on a compressed cache, expected text; begin again without past_key_values")
    if len(ids) != len(turn.order) or ids.shape[1] <= turn.length:
        raise ValueError(
            f"input_ids is {tuple(ids.shape)}, expected {len(turn.order)} dialogues of more than {turn.length} tokens"
        )
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    valid, added = turn.order >= 0, ids.shape[1] - turn.length
    head = rearranged(ids[:, : turn.length], turn.order, padding_id(model))
    step = torch.arange(1, added + 1, device=ids.device)
    position_ids = torch.cat([turn.position_ids, turn.position_ids[..., -1:] + step], -1)
    kinds = {name for name in inputs if name.endswith("token_type_ids")}  # those of text are what models assume
    short = {
        **{name: value for name, value in inputs.items() if name not in kinds},
        "input_ids": torch.cat([head, ids[:, turn.length :]], 1),
        "attention_mask": torch.cat([valid.to(mask), mask[:, turn.length :]], 1),
        "position_ids": position_ids,
    }
    output = _generate(model, short, ids, short["attention_mask"].bool(), turn.bias)
    return output, turn


def _generate(model: Any, inputs: dict[str, Any], ids: Int[Tensor, "B L"], valid: Tensor, bias: Tensor | None) -> Any:
    """Generate on short prompts, and put the full ones back in front."""
    gone = ids.shape[1] - inputs["input_ids"].shape[1]
    for name in ("max_length", "min_length"):
        if inputs.get(name) is not None:
            inputs = {**inputs, name: inputs[name] - gone}
    if bias is not None:
        inputs = {**inputs, "disable_compile": True}  # a compiled decoding step would not see our hook
    with masked(model, valid, bias):
        output = model.generate(**inputs)
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompt = ids.repeat_interleave(len(sequences) // len(ids), 0).to(sequences.device)
    sequences = torch.cat([prompt, sequences[:, ids.shape[1] - gone :]], 1)
    if isinstance(output, Tensor):
        return sequences
    output["sequences"] = sequences
    return output
