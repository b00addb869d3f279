"""A method that has the language model look first, through every door."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import crtc
from crtc.evaluation import Evaluation
from crtc.hosts import encode, question_attention
from crtc.methods import Reinforced
from crtc.tasks.picture import Glyphs
from tests.hosts.families import build

LOOK = "question_attention*inverse_degree^0.5"


def test_plans_by_what_the_model_attends_to(
    make_llava: Callable[..., Any], make_prompts: Callable[..., dict[str, Any]]
) -> None:
    model, inputs = make_llava(), make_prompts()
    method = Reinforced(LOOK, look=4)
    short = crtc.compress(model, inputs, method, count=2)
    encoded = encode(model, inputs)
    first = method.first_plan(encoded.tokens)
    assert first is not None and first.num_kept.tolist() == [4, 4, 4]
    seen = short.tokens.signals.question_attention
    assert seen is not None
    torch.testing.assert_close(seen, question_attention(encoded, first))
    assert short.plan.num_kept.tolist() == [2, 2, 2]
    with crtc.compressed(model, method, count=2) as handle:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert handle.plan is not None and torch.equal(handle.plan.slot, short.plan.slot)


def test_its_cost_counts_and_the_question_matters(host: tuple[Any, Any]) -> None:
    methods = {"plain": Reinforced(), "look": Reinforced(LOOK, look=32)}
    results = Evaluation(host, Glyphs("calibration", 2, 6), methods, counts=[16], masses=(True,)).run()
    assert results.runs["plain", True, 16].layer_equivalent == 16
    assert results.runs["look", True, 16].layer_equivalent == 48
    assert results.aware == {"plain": False, "look": True} and not results.skipped
    assert results.runs["look", True, 16].kl.mean() < results.runs["plain", True, 16].kl.mean()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "gemma3", "llava_onevision", "idefics3", "llava"])
def test_needs_no_width(name: str) -> None:
    """Without a word on models of any family, with and without the look, and with mass."""
    host = build(name, "sdpa")
    inputs = host.inputs()
    for method in ({}, {"method": Reinforced(LOOK, look=3)}):
        with crtc.compressed(host.model, keep=0.5, **method) as handle:
            host.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert handle.tokens is not None and handle.plan is not None and handle.plan.merges
        assert int(handle.plan.size.sum()) == int(handle.tokens.candidates.sum())


def test_nothing_is_looked_at_where_all_is_kept(
    make_llava: Callable[..., Any], make_prompts: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crtc.compression.question_attention", lambda *given, **more: pytest.fail("it looked"))
    model, inputs = make_llava(), make_prompts()
    short = crtc.compress(model, inputs, Reinforced(LOOK), keep=1.0)
    assert torch.equal(model(**short).logits, model(**inputs).logits)
