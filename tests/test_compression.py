"""The one-line entry: inputs for the stock model, and a context that leaves nothing behind."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from crtc.compression import compress, compressed
from crtc.hosts import decoder_layers, encode, shorten
from crtc.methods import Random
from crtc.methods.method import ScoreMethod
from crtc.tokens import apply

POSITIONS = ["repack", "keep"]


class Saliency(ScoreMethod):
    """The [CLS] attention."""

    family = "saliency"
    needs = frozenset({"cls_attention", "text", "grid"})

    def score(self, tokens):
        """Attention."""
        return tokens.signals.cls_attention


class Broken(ScoreMethod):
    """Fails."""

    family = "control"

    def score(self, tokens):
        """Fail."""
        raise RuntimeError("broken")


def state(model):
    """Everything a context could leave on a model."""
    return {
        name: (sorted(part.__dict__), list(part._forward_hooks), list(part._forward_pre_hooks), part.training)
        for name, part in model.named_modules()
    }


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}])
def test_keeping_everything_generates_the_same(make_llava, make_prompts, positions, mass, options):
    model, inputs = make_llava(), make_prompts()
    expected = model.generate(**inputs, max_new_tokens=6, **options)
    with compressed(model, Random(), keep=1.0, mass=mass, positions=positions) as handle:
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, **options), expected)
    assert handle.plan.num_kept.tolist() == [9, 9, 9]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mass", [False, True])
def test_keeping_everything_gives_the_same_logits(make_llava, make_prompts, positions, mass):
    model, inputs = make_llava(), make_prompts()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        expected = model(**inputs, labels=labels)
        with compressed(model, Random(), keep=1.0, mass=mass, positions=positions):
            got = model(**inputs, labels=labels)
        explicit = model(**compress(model, inputs, Random(), keep=1.0, mass=mass, positions=positions))
    assert torch.equal(got.logits, expected.logits) and torch.equal(got.loss, expected.loss)
    assert torch.equal(explicit.logits, expected.logits)


@pytest.mark.parametrize("positions", POSITIONS)
def test_two_ways_agree(make_llava, make_prompts, positions):
    model, inputs = make_llava(), make_prompts()
    short = compress(model, inputs, Random(), keep=1 / 3, positions=positions)
    length = inputs["input_ids"].shape[1]
    assert short["input_ids"].shape == short.order.shape == (2, length - 12)
    assert short.plan.num_kept.tolist() == [3, 3, 3] and len(short.tokens) == int(inputs["attention_mask"].sum())
    with compressed(model, Random(), count=3, mass=False, positions=positions) as handle:
        inside = model.generate(**inputs, max_new_tokens=4)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, use_cache=False), inside)
        logits = model(**inputs).logits
    assert torch.equal(inside[:, :length], inputs["input_ids"]) and inside.shape[1] == length + 4
    assert torch.equal(model(**short).logits, logits)
    assert torch.equal(handle.plan.kept, short.plan.kept) and torch.equal(handle.tokens.x, short.tokens.x)
    outside = model.generate(**short, max_new_tokens=4)
    assert torch.equal(outside[:, short.order.shape[1] :], inside[:, length:])


def test_positions_stay_unless_asked_otherwise(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    kept, packed = (compress(model, inputs, Random(), count=3, positions=positions) for positions in ("keep", "repack"))
    expected, other = (model(**short).logits for short in (kept, packed))
    with compressed(model, Random(), count=3, mass=False):
        assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(model(**compress(model, inputs, Random(), count=3)).logits, expected)
    assert not torch.allclose(expected, other)


def test_mass_takes_a_mask_for_plain_calls(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    short = compress(model, inputs, Random(), keep=1 / 3, mass=True)
    assert short["attention_mask"].shape == (2, 1, *[short.order.shape[1]] * 2)
    with compressed(model, Random(), keep=1 / 3), torch.no_grad():
        assert torch.equal(model(**inputs).logits, model.forward(**short).logits)


def test_positional_arguments(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    with compressed(model, Random(), count=2):
        by_place = model.generate(ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=3)
        assert torch.equal(by_place, model.generate(**inputs, max_new_tokens=3))
        assert torch.equal(model(ids, pixels, mask).logits, model(**inputs).logits)


def test_sampling_repeats_prompts(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    with compressed(model, Random(), count=2):
        out = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2)
    assert torch.equal(out[:, :-3], inputs["input_ids"].repeat_interleave(2, 0))


def test_needs_are_captured(make_llava, make_prompts):
    inputs = make_prompts()
    short = compress(make_llava(), inputs, Saliency(), count=2)
    assert short.tokens.signals.present == {"cls_attention"}
    scores = short.tokens.signals.cls_attention[short.tokens.candidates].view(3, 9)
    place = short.plan.kept.view(3, 2) - short.tokens.candidates.nonzero()[:, 0].view(3, 9)[:, :1]
    assert torch.equal(place, scores.topk(2).indices.sort().values)
    with pytest.raises(ValueError, match="Saliency needs cls_attention"):
        compress(make_llava(tower="siglip", strategy="full", feature_layer=-1), inputs, Saliency(), count=2)


def test_gradient_reaches_the_projector(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    with compressed(model, Random(), keep=0.5):
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.norm() > 0


def test_nothing_is_left(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    expected = model.generate(
        **inputs, max_new_tokens=3
    )  # the stock tower keeps hooks of its own from its first run on
    before = state(model)
    with compressed(model, Saliency(), keep=0.5):
        model.generate(**inputs, max_new_tokens=3)
        model(**inputs)
    assert state(model) == before
    for call in (model.generate, model.__call__):
        with pytest.raises(RuntimeError, match="broken"), compressed(model, Broken(), keep=0.5):
            (model.generate if call == model.__call__ else model)(**inputs)
        assert state(model) == before
    with compressed(model, Random(), keep=0.5), pytest.raises(ValueError, match="not used by the model"):
        model.generate(**inputs, max_new_tokens=3, wrong_option=1)
    with pytest.raises(KeyError), compressed(model, Random(), keep=0.5):
        raise KeyError("user")
    assert state(model) == before
    assert torch.equal(model.generate(**inputs, max_new_tokens=3), expected)


def test_a_generate_of_somebody_else_comes_back(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    stock, calls = model.generate, []

    def counting(*args, **kwargs):
        calls.append(1)
        return stock(*args, **kwargs)

    model.generate = counting
    with compressed(model, Random(), keep=0.5):
        model.generate(**inputs, max_new_tokens=2)
    assert model.generate is counting and calls == [1]


def test_inputs_are_not_changed(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    copy = {name: value.clone() for name, value in inputs.items()}
    compress(model, inputs, Random(), keep=0.5, mass=True)
    assert inputs.keys() == copy.keys() and all(torch.equal(inputs[name], copy[name]) for name in copy)


def test_plan_can_be_applied_again(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    short = compress(model, inputs, Random(), count=4)
    again = shorten(encode(model, inputs), short.plan, mass=False, positions="keep")
    rows = torch.cat(again["mm_encoder_outputs"]["image"].pooler_output)
    assert torch.equal(rows, apply(short.plan, short.tokens.x))


def test_refusals(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    text = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM is not supported"):
        compress(text, inputs, Random(), keep=0.5)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not supported"), compressed(text, Random(), keep=0.5):
        pass
    for wrong, match in (
        ({}, "keep is None and count is None"),
        ({"keep": 0.5, "count": 3}, "keep is 0.5 and count is 3"),
        ({"keep": 0.0}, "keep is 0.0"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"count": 0}, "count is 0"),
    ):
        with pytest.raises(ValueError, match=match), compressed(model, Random(), **wrong):
            pass
        with pytest.raises(ValueError, match=match):
            compress(model, inputs, Random(), **wrong)
    with pytest.raises(ValueError, match="count is 10, but a group has only 9"):
        compress(model, inputs, Random(), count=10)
    with compressed(model, Random(), count=3):
        with pytest.raises(ValueError, match="no image token 90"):
            model.generate(input_ids=torch.tensor([[1, 5, 6]]), max_new_tokens=2)
        with pytest.raises(ValueError, match="at least one image"):
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="past_key_values holds"):
            model(input_ids=torch.tensor([[5], [5]]), past_key_values=cache)


def test_wrong_settings_fail_on_entry(make_llava):
    model = make_llava()
    with pytest.raises(ValueError, match="positions is 'kep'"), compressed(model, Random(), keep=0.5, positions="kep"):
        pytest.fail("entered")
    with pytest.raises(ValueError, match="positions is 'kep'"):
        compress(model, {}, Random(), keep=0.5, positions="kep")
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="mass=False"), compressed(model, Random(), keep=0.5):
        pytest.fail("entered")
    with pytest.raises(ValueError, match="a method inside the language model needs one of"):
        compressed(model, "fastv", keep=0.9, mass=False).__enter__()


def test_layers_that_are_recomputed_with_their_hooks_are_refused(make_llava, monkeypatch):
    """Gradient checkpointing before transformers 5.23."""
    model = make_llava()
    model.gradient_checkpointing_enable()
    model.train()
    monkeypatch.setattr(transformers, "__version__", "5.22.0")
    with pytest.raises(ValueError, match=r"transformers 5.22.0 runs hooks again"):
        decoder_layers(model)
    assert decoder_layers(model.eval())
    monkeypatch.setattr(transformers, "__version__", "5.23.0")
    assert decoder_layers(model.train())


def test_tokens_leave_between_layers_of_one_device_alone(make_llava):
    model = make_llava()
    model.get_decoder().layers[-1].to(torch.device("meta"))
    assert decoder_layers(model)  # weights that come only when they are called for
    model = make_llava()
    layer = model.get_decoder().layers[-1]
    layer.parameters = lambda: iter([SimpleNamespace(device=torch.device("cuda:1"))])
    with pytest.raises(ValueError, match="layers of LlavaForConditionalGeneration are on cpu, cuda:1, expected all"):
        decoder_layers(model)
