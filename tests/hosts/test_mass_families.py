"""Mass preservation in every family: one layer does not notice that repetitions are left out, at no step."""

import copy

import pytest
import torch
import transformers as hf

from crtc.hosts import columns, encode, generate, shorten
from tests.hosts.families import BUILDERS, IMG, VID, WIDTH, build, text_config
from tests.hosts.references import doubled, third

RECURRENT = {"qwen3_5": "linear_attention", "lfm2_vl": "conv"}
FAMILIES = sorted(set(BUILDERS) - set(RECURRENT) - {"gemma3_narrow"})
WANTED = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
EXACT = ("sdpa", torch.float64, 1e-10)
ROUNDED = ("eager", torch.float32, 2e-5)
IN_FLOAT32 = {"llama4"}
"""Rotates in float32 even when its weights are float64."""


@pytest.mark.parametrize(("attention", "dtype", "tolerance"), [EXACT, ROUNDED], ids=["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_one_layer_does_not_notice(name, attention, dtype, tolerance):
    host = build(name, attention, dtype, layers=1)
    inputs = host.inputs(dtype=dtype)
    full, plan, _ = doubled(host.model, inputs, encode(host.model, inputs))
    encoded = encode(host.model, full)
    # in a plain call PaliGemma counts from one, in `generate` it adds one itself
    told = {**full, "position_ids": full["position_ids"] + 1} if name == "paligemma" else full
    expected = host.model(**told).logits
    plain = encode(host.model, told)
    got = {mass: host.model(**shorten(plain, plan, mass=mass, positions="keep")).logits for mass in (True, False)}
    order = columns(encoded, plan)
    row, short = (order >= 0).nonzero(as_tuple=True)
    ids = inputs["input_ids"][row, order[row, short]]
    text = (ids != IMG) & (ids != VID)
    row, short = row[text], short[text]
    reads = expected[row, order[row, short]]
    tolerance = 2e-5 if name in IN_FLOAT32 else tolerance
    assert (got[True][row, short] - reads).abs().max() <= tolerance
    assert (got[False][row, short] - reads).abs().max() > 1e-3

    steps = host.model.generate(**copy.copy(full), **WANTED)
    kept = generate(encoded, plan, mass=True, positions="keep", **WANTED)
    assert torch.equal(kept.sequences, steps.sequences)
    # generate turns logits into float32
    assert (torch.stack(kept.logits) - torch.stack(steps.logits)).abs().max() <= max(tolerance, 2e-6)


@pytest.mark.parametrize("name", sorted(set(BUILDERS) - set(RECURRENT) - {"ernie4_5_vl_moe"}))  # stock needs a cache
def test_with_and_without_cache(name):
    """Windowed caches hold only the last columns: the bias must be that of these."""
    host = build(name)
    encoded = encode(host.model, host.inputs())
    plan = third(encoded.tokens)
    cached, fresh = (
        generate(encoded, plan, mass=True, positions="keep", use_cache=cache, **WANTED) for cache in (True, False)
    )
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(fresh.logits), atol=1e-4, rtol=0)
    assert torch.equal(cached.sequences, fresh.sequences)


@torch.no_grad()
def test_a_window_that_cannot_be_told_is_refused():
    """PaliGemma 2 takes one mask for all layers; its window may not be shorter than what it reads."""
    host = build("paligemma")
    text = hf.Gemma2Config(**text_config(2), sliding_window=16)
    config = hf.PaliGemmaConfig(
        vision_config=host.model.config.vision_config, text_config=text, image_token_index=IMG, projection_dim=WIDTH
    )
    model = hf.PaliGemmaForConditionalGeneration(config).eval()
    encoded = encode(model, host.inputs())
    with pytest.raises(ValueError, match="PaliGemmaForConditionalGeneration takes one mask for all layers"):
        generate(encoded, third(encoded.tokens), mass=True, positions="keep", **WANTED)
    assert generate(encoded, third(encoded.tokens), mass=False, positions="keep", **WANTED)
    text.sliding_window = 128
    assert generate(encoded, third(encoded.tokens), mass=True, positions="keep", **WANTED)


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_recurrent_layers_are_refused_by_name(name):
    host = build(name)
    encoded = encode(host.model, host.inputs())
    with pytest.raises(ValueError, match=f"{type(host.model).__name__} has layers of {RECURRENT[name]}"):
        shorten(encoded, third(encoded.tokens), mass=True, positions="keep")
