"""Mass preservation: n equal keys and one key with log n are the same to every query."""

import pytest
import torch

from crtc.hosts import columns, encode, generate, shorten
from crtc.hosts.mass import biased_masks, causal
from crtc.merging import make_plan
from crtc.methods.method import keep_all
from crtc.tokens import DROPPED, Groups, Plan
from tests.hosts.families import before

EXACT = ("sdpa", 1e-10)
ROUNDED = ("eager", 2e-6)  # stock eager attention takes every softmax in float32
PRUNED = torch.tensor([0, 0, 0, 3, 3, 5, 5, 5, 8])  # owners in an image of 9 tokens


def plan_of(tokens, owner=PRUNED):
    """Kept tokens keep their content and take the mass of those that they own."""
    groups = Groups.of(tokens)
    owners = owner.expand_as(groups.index).masked_fill(~groups.valid, DROPPED)
    own = (owners == torch.arange(owners.shape[1])).double()
    return make_plan(tokens, groups, owners, own)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_mask_by_hand(make_llava, attention):
    model = make_llava(attention=attention)
    inputs = {"input_ids": torch.tensor([[0, 5, 6, 7]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    low = torch.finfo(torch.float32).min
    full = biased_masks(model, inputs, torch.tensor([[0.0, 0.5, 0.0, 0.25]]))
    assert full[0, 0].tolist() == [
        [low, low, low, low],
        [low, 0.5, low, low],
        [low, 0.5, 0.0, low],
        [low, 0.5, 0.0, 0.25],
    ]
    whole = {"input_ids": inputs["input_ids"]}  # the model would leave out this mask
    assert biased_masks(model, whole, torch.zeros(1, 4))[0, 0, 0].tolist() == [0, low, low, low]
    assert causal(1, 4, start=2, device=torch.device("cpu")).tolist() == [[[[True, True, True, False]]]]
    cache = model(input_ids=torch.tensor([[4, 5]])).past_key_values
    later = {"input_ids": torch.tensor([[6, 7], [8, 9]]), "past_key_values": cache}
    assert biased_masks(model, later, torch.tensor([[0.5, 0.25]]))[1, 0].tolist() == [
        [0.5, 0.25, 0.0, low],
        [0.5, 0.25, 0.0, 0.0],
    ]
    with pytest.raises(ValueError, match="got 2 rows, expected a multiple of 3 prompts"):
        biased_masks(model, later, torch.zeros(3, 2))


@pytest.mark.parametrize(("attention", "tolerance"), [EXACT, ROUNDED])
def test_one_attention_layer_reads_the_same(make_llava, attention, tolerance):
    """Merge columns with identical keys and values: the other queries read what they read before."""
    model = make_llava(attention=attention, dtype=torch.float64)
    decoder = model.get_decoder()
    torch.manual_seed(0)
    x = torch.randn(1, 12, 32, dtype=torch.float64)
    owner = torch.cat([torch.tensor([0]), 1 + PRUNED, torch.tensor([10, 11])])  # one word, nine patches, two words
    x = x[:, owner]
    kept = owner.unique()
    size = torch.bincount(owner)[kept].double()

    def read(states, position, bias):
        mask = biased_masks(model, {"input_ids": torch.ones(bias.shape, dtype=torch.long)}, bias)
        rotation = decoder.rotary_emb(states, position_ids=position)
        return decoder.layers[0].self_attn(states, position_embeddings=rotation, attention_mask=mask)[0]

    with torch.no_grad():
        full = read(x, owner[None], torch.zeros(1, 12, dtype=torch.float64))
        short = read(x[:, kept], kept[None], size.log()[None])
        plain = read(x[:, kept], kept[None], torch.zeros(1, len(kept), dtype=torch.float64))
    torch.testing.assert_close(short[:, -2:], full[:, -2:], atol=tolerance, rtol=0)
    assert (plain[:, -2:] - full[:, -2:]).abs().max() > 1e-3


def duplicates(model, inputs):
    """Encoded prompts whose owned tokens equal their owners, in content and in position."""
    encoded = encode(model, inputs)
    plan = plan_of(encoded.tokens)
    images = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
    images.pooler_output = [image[PRUNED] for image in images.pooler_output]
    position = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for group in range(encoded.tokens.num_groups):
        place = (encoded.tokens.group == group).nonzero()[:, 0]
        row, column = encoded.tokens.sequence[place[0]], encoded.column[place]
        position[row, column] = position[row, column[0]] + PRUNED
    full = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    full |= {"position_ids": position, "mm_encoder_outputs": {"image": images}}
    return full, plan


@pytest.mark.parametrize(("attention", "tolerance"), [EXACT, ROUNDED])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_one_layer_model_does_not_notice(make_llava, make_prompts, attention, tolerance, side):
    """Text reads the same from merged duplicates, in a batch with padding and two images in a row."""
    model = make_llava(layers=1, attention=attention, dtype=torch.float64)
    inputs = make_prompts(side=side, dtype=torch.float64)
    with torch.no_grad():
        full, plan = duplicates(model, inputs)
        encoded = encode(model, full)
        everything = shorten(encoded, keep_all(encoded.tokens), mass=False, positions="keep")
        zeros = torch.zeros(inputs["input_ids"].shape)  # stock eager makes NaN of left padding in float64
        everything["attention_mask"] = biased_masks(model, everything, zeros)
        expected = model(**everything).logits
        got = {mass: model(**shorten(encoded, plan, mass=mass, positions="keep")).logits for mass in (True, False)}
    order = columns(encoded, plan)
    row, short = (order >= 0).nonzero(as_tuple=True)
    text = inputs["input_ids"][row, order[row, short]] != model.config.image_token_id
    row, short = row[text], short[text]
    full_text = expected[row, order[row, short]]
    torch.testing.assert_close(got[True][row, short], full_text, atol=tolerance, rtol=0)
    assert (got[False][row, short] - full_text).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        *([] if before("5.23") else [{"prefill_chunk_size": 5}]),
    ],
)
def test_every_decoding_step_reads_the_mass(make_llava, make_prompts, attention, options):
    """Logits of every step equal those of the full prompt with duplicates."""
    model = make_llava(layers=1, attention=attention, dtype=torch.float64)
    inputs = make_prompts(dtype=torch.float64)
    full, plan = duplicates(model, inputs)
    encoded = encode(model, full)
    wanted = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(**full, **wanted)
    got = generate(encoded, plan, mass=True, positions="keep", **wanted, **options)
    plain = generate(encoded, plan, mass=False, positions="keep", **wanted, **options)
    assert torch.equal(got.sequences, expected.sequences)
    # generate turns logits into float32
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), atol=2e-6, rtol=0)
    assert (plain.logits[0] - expected.logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["repack", "keep"])
@pytest.mark.parametrize("mass", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_with_and_without_cache(make_llava, make_prompts, positions, mass, rows):
    """A single unpadded prompt is the case in which gaps in positions could be read as packed sequences."""
    model = make_llava()
    inputs = make_prompts((1,) if rows == 1 else (1, 2))
    encoded = encode(model, inputs)
    plan = plan_of(encoded.tokens)
    wanted = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    cached, fresh = (
        generate(encoded, plan, mass=mass, positions=positions, use_cache=cache, **wanted) for cache in (True, False)
    )
    assert torch.equal(cached.sequences, fresh.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(fresh.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_in_a_batch_equal_beams_alone(make_llava, make_prompts, options):
    model, inputs = make_llava(), make_prompts()
    encoded = encode(model, inputs)
    options = {**options, "max_new_tokens": 4}
    together = generate(encoded, plan_of(encoded.tokens), mass=True, positions="repack", **options)
    answers = options.get("num_return_sequences", 1)
    for row, pixels in enumerate(inputs["pixel_values"].split([1, 2])):
        ids = inputs["input_ids"][row : row + 1, inputs["attention_mask"][row].bool()]
        alone = encode(model, {"input_ids": ids, "pixel_values": pixels})
        single = generate(alone, plan_of(alone.tokens), mass=True, positions="repack", **options)
        assert torch.equal(single[:, ids.shape[1] :], together[row * answers : (row + 1) * answers, -4:])
        assert torch.equal(single[:, : ids.shape[1]], ids.expand(answers, -1))


def test_refusals(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    encoded = encode(model, inputs)
    plan = plan_of(encoded.tokens)
    empty = Plan(plan.kept, plan.slot, plan.weight, torch.zeros_like(plan.size), plan.group)
    with pytest.raises(ValueError, match=r"size of a kept token is 0\.0"):
        shorten(encoded, empty, mass=True, positions="keep")
    config = model.get_decoder().config
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2'"):
        shorten(encoded, plan, mass=True, positions="keep")
    assert shorten(encoded, plan, mass=False, positions="keep")
    config._attn_implementation = "sdpa"
    cache = model(input_ids=torch.tensor([[1, 2]])).past_key_values
    with pytest.raises(ValueError, match="past_key_values holds 2 tokens"):
        generate(encoded, plan, mass=True, positions="keep", past_key_values=cache)


def test_flex_attention_reads_the_mass(make_llava, make_prompts, monkeypatch):
    """In the prefill and in every decoding step; uncompiled: the kernel compiled for CPUs crashes on short rows."""
    monkeypatch.setattr("transformers.integrations.flex_attention.is_torchdynamo_compiling", lambda: True)
    inputs = make_prompts()
    said, written = [], []
    for attention in ("sdpa", "flex_attention"):
        model = make_llava()
        model.set_attn_implementation({"text_config": attention})
        encoded = encode(model, inputs)
        plan = plan_of(encoded.tokens)
        with torch.no_grad():
            said.append(model(**shorten(encoded, plan, mass=True, positions="repack")).logits[:, -1])
        written.append(generate(encoded, plan, mass=True, positions="repack", max_new_tokens=4))
    torch.testing.assert_close(*said)
    assert torch.equal(*written)
