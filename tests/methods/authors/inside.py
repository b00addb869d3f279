"""The same for methods inside the language model. They are not timed: ours compute the attention, theirs are given it.

A picture is first in its sequence, with the question behind it. Queries and keys are those of one layer, without scale.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crtc.methods.sparsevlm import split_of
from tests.methods.authors.runs import PACT, Answer, Batch, Run, chosen, marked, merged, pact_settings, quiet
from tests.methods.authors.source import Source


def heads(rows: Tensor | None) -> Float[Tensor, "1 H L d"]:
    """Heads in front, as models have them."""
    assert rows is not None
    return rows.transpose(0, 1)[None]


def queries_and_keys(one: Batch) -> tuple[Float[Tensor, "1 H L d"], Float[Tensor, "1 H L d"]]:
    """Of the layer, keys repeated for every head of queries."""
    queries, keys = heads(one.tokens.signals.layer_queries), heads(one.tokens.signals.layer_keys)
    return queries, keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)


def causal(length: int) -> Float[Tensor, "1 1 L L"]:
    """What is added to the logits."""
    return torch.full((length, length), -torch.inf).triu(1)[None, None]


def attention(one: Batch) -> Float[Tensor, "1 H L L"]:
    """Of the layer."""
    queries, keys = queries_and_keys(one)
    return (queries @ keys.transpose(2, 3) + causal(queries.shape[2])).softmax(-1)


def each(batch: Batch, prepare: Callable[[Batch], Callable[[], Any]], read: Callable[[list[Any]], list[Answer]]) -> Run:
    """A run of picture by picture."""
    calls = [prepare(one) for one in batch.alone()]
    return Run(lambda: [call() for call in calls], read)


def fastv(source: Source, batch: Batch, k: int) -> Run:
    """The lines of the in-place version at the layer that aggregates, up to what is kept."""
    given = ("layer_outputs", "SYS_LENGTH", "IMAGE_TOKEN_LENGTH", "ATTENTION_RANK", "device", "seq_length_with_past")
    code = source.span(
        "LlamaModel.forward",
        "last_layer_attention",
        "keep_indexs",
        given=given,
        wanted=("top_attention_rank_index",),
    )

    def prepare(one: Batch) -> Callable[[], Any]:
        paid = attention(one)
        return lambda: code((None, paid), 0, one.size, k, one.x.device, len(one.tokens))[0]

    return each(batch, prepare, chosen)


def pyramid_drop(source: Source, batch: Batch, k: int) -> Run:
    """Its function on projections that give the queries and keys, and a rotation by nothing; the states are numbers."""

    def prepare(one: Batch) -> Callable[[], Any]:
        queries, keys = queries_and_keys(one)
        size, length, number, width = one.size, *queries.transpose(1, 2).shape[1:]
        layer = SimpleNamespace(
            num_heads=number,
            num_key_value_heads=number,
            head_dim=width,
            q_proj=lambda _: queries.transpose(1, 2).flatten(2) * math.sqrt(width),
            k_proj=lambda _: keys.transpose(1, 2).flatten(2),
            v_proj=lambda _: keys.transpose(1, 2).flatten(2),
            rotary_emb=lambda *_, **__: (None, None),
        )
        model = SimpleNamespace(
            config=SimpleNamespace(),
            image_token_ratio_list=[1, Fraction(k, size)],
            image_tokens=[size],
            image_token_posi=[0],
            prompt_len=[length - size],
            layers=[SimpleNamespace(self_attn=layer, input_layernorm=lambda states: states)],
            training=False,
        )
        code = source.define(
            "LlamaModel.pdrop_rank_drop",
            apply_rotary_pos_emb=lambda query, key, *_: (query, key),
            _prepare_4d_causal_attention_mask=lambda *_, **__: causal(length),
            IGNORE_INDEX=-100,
        )["pdrop_rank_drop"]
        states = torch.arange(length, dtype=torch.float32)[None, :, None]
        return lambda: code(model, 0, 0, states, None, None, None)[2][0, :k, 0].long()

    return each(batch, prepare, chosen)


class OrderedSet(dict[Any, None]):
    """A set that goes through its members in the order in which they came."""

    def __init__(self, members: Iterable[Any] = ()):
        super().__init__(dict.fromkeys(members))

    def update(self, members: Iterable[Any]) -> None:  # type: ignore[override]
        super().update(dict.fromkeys(members))

    def difference_update(self, members: Iterable[Any]) -> None:
        for member in members:
            self.pop(member, None)

    def __sub__(self, members: "OrderedSet") -> "OrderedSet":
        return OrderedSet(member for member in self if member not in members)


def dart(source: Source, batch: Batch, k: int) -> Run:
    """Its function, with sets that remember the order in which its top-k gives the pivots."""
    code = source.define("DART.get_retained_image_token", set=OrderedSet, LlamaConfig=SimpleNamespace)[
        "get_retained_image_token"
    ]

    def prepare(one: Batch) -> Callable[[], Any]:
        states, keys = one.tokens.signals.normed_states, heads(one.tokens.signals.layer_keys)
        assert states is not None
        settings = {
            "K": 2,
            "image_token_start_index": 0,
            "image_token_length": one.size,
            "max_num_trunction": k - 4,
            "pivot_image_token": 4,
            "pivot_text_token": 4,
            "reduction_ratio": None,
        }
        config = SimpleNamespace(DART_config=settings, text_length=None)
        return lambda: code(None, config, states[None], keys)

    return each(batch, prepare, chosen)


def sparsevlm(source: Source, batch: Batch, k: int, *, recycle: bool = True) -> Run:
    """The lines that choose the raters, its top-k, and those that merge, without noise, on one stage."""
    forward, folder = "LlamaDynamicvitModel.forward", "llava/model/language_model"
    best = split_of(batch.size, k)[0] if recycle else k
    rate = source.span(
        forward,
        "v_t",
        "t_token_idx",
        given=("hidden_states", "v_token_start", "text_token_start"),
        wanted=("t_token_idx",),
    )
    stage = {"RETAIN_TOKN": 0, "sparse_token_dict": {0: [best]}, "layer_dict": {0: 0}}
    top = source.beside(f"{folder}/score.py").define("attn_postprocess_topk", **stage)["attn_postprocess_topk"]
    tools = ("batch_index_select", "index_points", "cluster_and_merge")
    merge = source.span(
        forward,
        "total_sparse_token",
        "select_and_merge_token",
        given=(
            "policy",
            "total_sparse_token_idx",
            "layer_outputs",
            "pred_score_vis",
            "relation_vis_text",
            "v_token_start",
        ),
        wanted=("select_and_merge_token",),
        **source.beside(f"{folder}/utils.py").define(*tools, **quiet()),
    )

    def prepare(one: Batch) -> Callable[[], Any]:
        embeddings, paid = one.tokens.signals.embeddings, attention(one)
        assert embeddings is not None

        def go() -> Any:
            raters = rate(embeddings[None], 0, one.size)[0]
            mask, _, relation = top(paid, 0, one.size, one.size, raters, 0)
            if not recycle:
                return mask
            policy = torch.ones(1, len(one.tokens))
            policy[:, : one.size] = mask
            rows = merge(policy, (policy == 0).nonzero()[None, :, 1], (one.tokens.x[None],), mask, relation, 0)[0]
            return rows[0, :k]

        return go

    return each(batch, prepare, merged if recycle else marked)


def pact(source: Source, batch: Batch, k: int, *, cutoff: float) -> Run:
    """The lines that prune, and its clustering; it keeps what the cutoff gives, whatever k is."""
    tools = source.beside("transformers/PACT/utils.py")
    settings, cluster = pact_settings(tools), tools.define(*PACT)["token_reduction"]
    given = ("pact_config", "current_q_image", "current_k_image", "decoder_layer")
    prune = source.span(
        "Qwen2Model.forward",
        "bsz",
        "first_mask",
        given=(*given, "hidden_states", "is_image", "is_not_text"),
        wanted=("first_mask",),
        repeat_kv=lambda keys, number: keys.repeat_interleave(number, 1),
    )

    def prepare(one: Batch) -> Callable[[], Any]:
        signals, size = one.tokens.signals, one.size
        queries, keys, rotated = signals.plain_queries, signals.plain_keys, signals.layer_keys
        assert queries is not None and keys is not None and rotated is not None
        number, width = queries.shape[1:]
        layer = SimpleNamespace(
            num_heads=number,
            num_key_value_heads=keys.shape[1],
            num_key_value_groups=number // keys.shape[1],
            head_dim=width,
        )
        asked, seen = queries[:size].flatten(1)[None] * math.sqrt(width), keys[:size].flatten(1)[None]
        everyone = torch.ones(size, dtype=torch.bool)
        by = rotated[:size].flatten(1)

        def go() -> tuple[Tensor, Tensor]:
            model = SimpleNamespace(self_attn=layer)
            (stays,) = prune(settings, asked, seen, model, one.x, everyone, everyone)
            x, gone = one.x[0], ~stays
            rows, mask, _, _ = cluster(
                x[stays], by[stays], cutoff, [], settings, pruned_hiddens=x[gone], pruned_keys=by[gone]
            )
            kept = mask.flatten().nonzero()[:, 0]
            return stays.nonzero()[kept, 0], rows[kept]

        return go

    return each(batch, prepare, lambda parts: [Answer(kept.tolist(), rows) for kept, rows in parts])


INSIDE: dict[str, Callable[..., Run]] = {
    "fastv": fastv,
    "pyramid_drop": pyramid_drop,
    "dart": dart,
    "sparsevlm": sparsevlm,
    "sparsevlm_without_recycling": sparsevlm,
    "pact": pact,
    "pact_wide": pact,
}
"""By the name of the file in `golden`."""
