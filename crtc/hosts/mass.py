"""Mass preservation: a token that stands for n tokens draws the attention of n, in every layer of the language model.

Adding log(size) to the logits of a key column makes softmax count it `size` times (ToMe's proportional attention, Bolya
et al. 2023, carried into the language model). Stock attention takes it as an additive float mask, under sdpa and eager.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration


def check_attention(model: LlavaForConditionalGeneration) -> None:
    """Raise `ValueError` unless the language model takes an additive mask and reads all of its context."""
    config = model.model.language_model.config
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"attention implementation is {config._attn_implementation!r}, mass preservation needs 'sdpa' or 'eager'"
        )
    if getattr(config, "sliding_window", None) is not None:
        raise ValueError(f"sliding_window is {config.sliding_window}, mass preservation needs full attention")


def additive_mask(
    valid: Bool[Tensor, "B L"], bias: Float[Tensor, "B L"], dtype: torch.dtype, *, num_queries: int, start: int = 0
) -> Float[Tensor, "B 1 Q L"]:
    """Causal order, padding and bias in one float mask.

    Args:
        valid: which key columns are no padding.
        bias: what is added to the logits of every key column.
        dtype: of the model; sdpa wants the mask in the type of the queries.
        num_queries: rows of the mask.
        start: column of the first query.
    """
    column = torch.arange(valid.shape[1], device=valid.device)
    query = start + torch.arange(num_queries, device=valid.device)
    visible = (column <= query[:, None]) & valid[:, None, None]
    # A padding query sees nothing, and a row of -inf would be NaN. Eager attention takes the softmax in float32.
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    return torch.where(visible, bias.to(dtype)[:, None, None], lowest)


@contextmanager
def masked(
    model: LlavaForConditionalGeneration, valid: Bool[Tensor, "B L"], bias: Float[Tensor, "B L"] | None
) -> Iterator[None]:
    """While the context lasts, the language model reads one prompt, and what it generates after it, through our mask.

    The bias stays with the cached key columns, columns of new tokens have none. Rows repeated for beams or several
    answers are recognised by their number. A static cache works too. Without a bias the model's own mask stays, only
    made explicit where `generate` left it out: without mask and cache, gaps in positions are read as packed sequences.

    Raises:
        ValueError: when the number of rows is no multiple of the prompts.
    """

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rows, queries = kwargs["inputs_embeds"].shape[:2]
        cache = kwargs.get("past_key_values")
        if bias is None:
            if kwargs.get("attention_mask") is None and cache is None:
                kwargs = {**kwargs, "attention_mask": valid.new_ones(rows, queries)}
            return args, kwargs
        if rows % len(valid):
            raise ValueError(f"the language model got {rows} rows, expected a multiple of {len(valid)} prompts")
        start = 0 if cache is None else int(cache.get_seq_length())
        length = queries if cache is None else int(cache.get_mask_sizes(queries, 0)[0])
        new = length - valid.shape[1]  # negative while a long prompt is read in chunks
        columns = F.pad(valid, (0, new), value=True).repeat_interleave(rows // len(valid), 0)
        weights = F.pad(bias, (0, new)).repeat_interleave(rows // len(valid), 0)
        dtype = kwargs["inputs_embeds"].dtype
        mask = additive_mask(columns, weights, dtype, num_queries=queries, start=start)
        return args, {**kwargs, "attention_mask": mask}

    handle = model.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
