"""The look of a question is what eager layers tell of the same prompts, in every family, and nothing stays behind."""

from dataclasses import replace

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crtc import compressed
from crtc.hosts import columns, encode, question_attention, shorten
from crtc.hosts.dialogue import asked, dialogue
from crtc.hosts.embedded import load_host
from crtc.hosts.family import preserved
from crtc.hosts.layers import shown_layers
from crtc.methods import KMeans, Random
from crtc.tasks.picture import Glyphs
from crtc.tokens import TEXT, keep_all
from tests.hosts.families import BROKEN, BUILDERS, IMG, VID, build
from tests.hosts.references import cut, doubled, third
from tests.hosts.watching import softmax_shapes
from tests.test_compression import state

RECURRENT = {"qwen3_5": "linear_attention", "lfm2_vl": "conv"}
FAMILIES = sorted(set(BUILDERS) - set(RECURRENT))
NEAR = {"atol": 1e-5, "rtol": 1e-5}


def by_eager(eager, encoded, plan, seen=None, placeholders=(IMG, VID)):
    """The same from the attentions that an eager model puts out, token by token."""
    short = shorten(replace(encoded, model=eager), plan, mass=True, positions="keep")
    layers = eager(**short, output_attentions=True).attentions
    order, ids = columns(encoded, plan), encoded.inputs["input_ids"]
    tokens, column = encoded.tokens, encoded.column
    found = torch.zeros(len(tokens), dtype=layers[0].dtype)
    for row in range(len(ids)):
        mine = (tokens.sequence == row).nonzero()[:, 0].tolist()
        words = [i for i in mine if int(ids[row, column[i]]) not in placeholders and (seen is None or seen[i])]
        last = max((i for i in mine if int(ids[row, column[i]]) in placeholders), default=-1)
        place = {full: place for place, full in enumerate(order[row].tolist()) if full >= 0}
        asking = [place[int(column[i])] for i in [i for i in words if i > last] or words]
        paid = sum(layer[row, :, asking].square().sum((0, 1)) for layer in layers)
        for i in mine:
            if plan.slot[i] >= 0:
                members = int((plan.slot == plan.slot[i]).sum())
                found[i] = paid[place[int(column[plan.kept[plan.slot[i]]])]] / members
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make_plan", [keep_all, third, cut], ids=["all", "merged", "dropped"])
@torch.no_grad()
def test_it_is_the_attention_of_eager_layers(make_llava, make_prompts, make_plan, side, attention):
    inputs = make_prompts((1, 2, 1), extra=(6, 3, 1), side=side)
    encoded = encode(make_llava(attention=attention), inputs)
    plan = make_plan(encoded.tokens)
    got = question_attention(encoded, plan)
    torch.testing.assert_close(got, by_eager(make_llava(attention="eager"), encoded, plan, placeholders=(90,)), **NEAR)
    assert got.shape == (len(encoded.tokens),) and got[~encoded.tokens.candidates].abs().max() == 0
    assert (got > 0).tolist() == (plan.slot >= 0).tolist()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_in_every_family(name):
    """M-RoPE, sliding windows, images that see both ways, shared keys; a narrow window hides far tokens."""
    host, eager = build(name), build(name, "eager")
    for make_plan in (keep_all, third):
        encoded = encode(host.model, host.inputs())
        plan, before, counted = make_plan(encoded.tokens), state(host.model), preserved(host.model)
        got = question_attention(encoded, plan)
        torch.testing.assert_close(got, by_eager(eager.model, encoded, plan).float(), **NEAR)
        assert state(host.model) == before and got.max() > 0
        assert all(value is preserved(host.model)[name] for name, value in counted.items())


@pytest.mark.parametrize("plan_of", [lambda tokens, k: keep_all(tokens), KMeans()], ids=["all", "merged"])
@torch.no_grad()
def test_on_the_embedded_host(host, plan_of):
    model, processor = host
    picture = Glyphs("test", 1, 12)[0]
    talk = dialogue(processor, [replace(picture, questions=picture.questions[:3])])
    encoded = encode(model, talk.inputs, image_of=talk.image_of)
    tokens, seen = encoded.tokens, asked(encoded, talk.targets)
    plan = plan_of(tokens, torch.full((tokens.num_groups,), 64))
    eager, _ = load_host()
    eager.set_attn_implementation("eager")
    expected = by_eager(eager, encoded, plan, seen, (model.config.image_token_id,))
    got = question_attention(encoded, plan, seen=seen)
    torch.testing.assert_close(got, expected, **NEAR)
    assert not torch.allclose(got, question_attention(encoded, plan), atol=1e-3)  # answers look too, if they may


@torch.no_grad()
def test_answers_are_not_seen(make_llava, make_prompts):
    """Whatever stands behind the prompts, and though rows get longer and padded by it."""
    model, inputs = make_llava(), make_prompts(side="right")
    encoded = encode(model, inputs)
    expected = question_attention(encoded, third(encoded.tokens))
    ids, mask = (torch.nn.functional.pad(inputs[name], (0, 4)) for name in ("input_ids", "attention_mask"))
    length = mask.sum(1)
    for answer in ((11, 12, 13), (44, 45, 46)):
        for row in range(len(ids)):
            ids[row, length[row] : length[row] + 3] = torch.tensor(answer)
            mask[row, length[row] : length[row] + 3] = 1
        longer = encode(model, {**inputs, "input_ids": ids, "attention_mask": mask, "labels": ids})
        tokens = longer.tokens
        seen = longer.column < length[tokens.sequence]
        got = question_attention(longer, third(tokens), seen=seen)
        torch.testing.assert_close(got[seen], expected, **NEAR)
        assert got[~seen].abs().max() == 0


@torch.no_grad()
def test_where_no_word_stands_behind_all_ask(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts((2,), extra=(0,))
    inputs = {name: value[:, :-2] if value.ndim == 2 else value for name, value in inputs.items()}
    encoded = encode(model, inputs)
    assert encoded.tokens.kind[-1] != TEXT
    plan = third(encoded.tokens)
    got = question_attention(encoded, plan)
    torch.testing.assert_close(got, by_eager(make_llava(attention="eager"), encoded, plan, placeholders=(90,)), **NEAR)
    group = encoded.tokens.group
    assert got[group == 0].min() > 0 and got[group == 1].max() == 0  # words between the images see the first one only


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3_narrow", "smolvlm"])
@torch.no_grad()
def test_neither_padding_nor_neighbours_matter(name):
    host = build(name)
    looks = []
    for side in ("left", "right"):
        encoded = encode(host.model, host.inputs(side=side))
        looks.append(question_attention(encoded, third(encoded.tokens)))
    torch.testing.assert_close(*looks, **NEAR)
    for row, pictures in enumerate(((0,), (1, 2))):
        alone = encode(host.model, host.inputs(rows=(pictures,)))
        got = question_attention(alone, third(alone.tokens))
        torch.testing.assert_close(got, looks[0][encoded.tokens.sequence == row], **NEAR)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_what_mass_preserves(name):
    """In one layer, a slot draws what its n equal members drew together. Its square is n times the sum of theirs, so
    that each of them, with an even share of it, has n times what it had.
    """
    host = build(name, dtype=torch.float64, layers=1)
    inputs = host.inputs(dtype=torch.float64)
    full, plan, _ = doubled(host.model, inputs, encode(host.model, inputs))
    encoded = encode(host.model, full)
    members = torch.ones(len(plan.slot))
    members[plan.slot >= 0] = torch.bincount(plan.slot[plan.slot >= 0])[plan.slot[plan.slot >= 0]].float()
    apart = question_attention(encoded, keep_all(encoded.tokens))
    torch.testing.assert_close(question_attention(encoded, plan), apart * members, **NEAR)
    assert members.max() == 2 and apart.max() > 1e-3


@torch.no_grad()
def test_with_weights_in_bfloat16(make_llava, make_prompts):
    inputs = make_prompts()
    looks = []
    for dtype in (torch.float32, torch.bfloat16):
        pixels = inputs["pixel_values"].to(dtype)
        encoded = encode(make_llava(dtype=dtype), {**inputs, "pixel_values": pixels})
        looks.append(question_attention(encoded, third(encoded.tokens)))
    assert looks[1].dtype == torch.float32
    torch.testing.assert_close(looks[1], looks[0], atol=0.03, rtol=0.1)


def test_flex_attention_tells_the_same(make_llava, make_prompts, monkeypatch):
    # stock flex attention compiles its kernel, which takes minutes; uncompiled it computes the same
    monkeypatch.setattr("transformers.integrations.flex_attention.is_torchdynamo_compiling", lambda: True)
    looks = []
    for attention in ("sdpa", "flex_attention"):
        encoded = encode(make_llava(), make_prompts())
        encoded.model.set_attn_implementation(attention)
        looks += [question_attention(encoded, plan(encoded.tokens)) for plan in (keep_all, third)]
    for got, expected in zip(looks[2:], looks[:2], strict=True):
        torch.testing.assert_close(got, expected, **NEAR)


@torch.no_grad()
def test_only_the_queries_that_ask(make_llava, make_prompts, monkeypatch):
    encoded = encode(make_llava(), make_prompts((1, 2), extra=(6, 3)))
    with softmax_shapes() as shapes:
        whole = question_attention(encoded, third(encoded.tokens))
    assert shapes == [(2, 4, 8, 16)] * 2  # two words and six
    monkeypatch.setattr("crtc.hosts.look.QUERIES_AT_ONCE", 3)
    torch.testing.assert_close(question_attention(encoded, third(encoded.tokens)), whole, **NEAR)


def test_inside_compressed_and_generate(make_llava, make_prompts):
    """A method may look while the prompts it plans for are on their way into the model, with a cache or options."""
    model, inputs, looks = make_llava(), make_prompts(), []

    class Looking(Random):
        def plan(self, tokens, k):
            encoded = encode(model, {**inputs, "max_new_tokens": 2, "use_cache": True})
            looks.append(question_attention(encoded, third(encoded.tokens)))
            return super().plan(tokens, k)

    with compressed(model, Looking(), keep=0.5):
        model(**inputs)
        model.generate(**inputs, max_new_tokens=2)
    assert len(looks) == 2 and torch.equal(*looks) and not looks[0].requires_grad


def test_nothing_is_left_after_an_exception(make_llava, make_prompts, monkeypatch):
    model = make_llava()
    encoded = encode(model, make_prompts())
    stock, before = ALL_ATTENTION_FUNCTIONS.get_interface, state(model)
    last = shown_layers(model)[-1][0]

    def broken(*args, **kwargs):
        raise RuntimeError("broken")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken"):
        patch.setattr(last.mlp, "forward", broken)
        question_attention(encoded, keep_all(encoded.tokens))
    assert stock == ALL_ATTENTION_FUNCTIONS.get_interface and state(model) == before
    assert model.model.language_model.config._attn_implementation == "sdpa"


def test_what_cannot_be_done_is_said(make_llava, make_prompts):
    model = make_llava()
    encoded = encode(model, make_prompts())
    plan = keep_all(encoded.tokens)
    with pytest.raises(ValueError, match=r"seen is \(3,\) of torch.bool, expected bool \(48,\)"):
        question_attention(encoded, plan, seen=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"seen is .* of torch.float32, expected bool"):
        question_attention(encoded, plan, seen=torch.ones(len(encoded.tokens)))
    other = encode(model, make_prompts((1,)))
    with pytest.raises(ValueError, match="other tokens"):
        question_attention(encoded, keep_all(other.tokens))
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attention implementation is 'flash_attention_2'"):
        question_attention(encoded, plan)
    for name, kind in RECURRENT.items():
        host = build(name)
        encoded = encode(host.model, host.inputs())
        with pytest.raises(ValueError, match=f"{type(host.model).__name__} has layers of {kind}"):
            question_attention(encoded, keep_all(encoded.tokens))
    assert set(FAMILIES) >= {"llava", "qwen2_5_vl", "gemma3", "gemma4", "internvl", "paligemma"} - BROKEN


def test_attention_that_is_not_what_it_seems_is_refused(make_llava, make_prompts, monkeypatch):
    model = make_llava()
    encoded = encode(model, make_prompts())
    attention = shown_layers(model)[1][1]
    stock = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *args, **kwargs: stock(*args, **kwargs, s_aux=torch.zeros(4)))
    with pytest.raises(ValueError, match="attention reads the mask and s_aux"):
        question_attention(encoded, keep_all(encoded.tokens))
    monkeypatch.setattr(
        attention, "forward", lambda *args, **kwargs: (stock(*args, **kwargs), stock(*args, **kwargs))[0]
    )
    with pytest.raises(ValueError, match="showed attention 3 times in 2 layers, expected once in each"):
        question_attention(encoded, keep_all(encoded.tokens))
