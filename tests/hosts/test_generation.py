"""Generating from compressed prompts: in a batch, with beams, on every cache, turn after turn; nothing is left."""

import copy
import threading
import warnings
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, TextStreamer, pipeline
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crtc import catalogue, compress, compressed, get_method
from crtc.hosts import columns, encode, generate, shorten
from crtc.hosts.visual import PIXELS
from crtc.methods.method import Method, ScoreMethod
from crtc.tokens import SIGNALS
from tests.hosts.families import BUILDERS, ROWS, before, build
from tests.hosts.references import cut, third

FAMILIES = sorted(BUILDERS)
RECURRENT = {"qwen3_5", "lfm2_vl"}
NO_BEAMS = dict.fromkeys(("llama4", "fuyu"), "its stock beams do not repeat image rows")
NO_CHUNKS = {
    "gemma3": "a chunk cannot look ahead into the rest of an image",
    "gemma3_narrow": "a chunk cannot look ahead into the rest of an image",
    "gemma4": "a chunk cannot look ahead into the rest of an image",
    "paligemma": "a chunk cannot look ahead into the rest of the prompt",
    "llama4": "stock prefilling in chunks fails",
    "fuyu": "stock prefilling in chunks fails",
    "granite4_vision": "stock prefilling in chunks fails",
}
NO_STATIC: dict[str, str] = {}
NO_LATER_PICTURES: dict[str, str] = {}
if before("5.23"):
    NO_CHUNKS |= dict.fromkeys(FAMILIES, "generate loses the features when it reads in chunks")
    NO_STATIC["gemma4"] = "stock says something else with a static cache"
    mistaken = "stock takes the token types of a later turn for those of the first columns, or the other way round"
    NO_LATER_PICTURES |= dict.fromkeys(("gemma3", "gemma3_narrow", "ernie4_5_vl_moe"), mistaken)
if before("5.20"):
    NO_STATIC["llama4"] = "stock makes no masks of chunks in advance"
GREEDY = {"max_new_tokens": 4, "do_sample": False}


class Third(Method):
    """Merges threes."""

    family = "control"

    def plan(self, tokens, k):
        """Threes."""
        return third(tokens)


class Captured(ScoreMethod):
    """Needs what a tower may give."""

    family = "control"
    needs = frozenset({"features"})

    def score(self, tokens):
        """Norm."""
        return tokens.signals.features.norm(dim=1)


class Broken(ScoreMethod):
    """Fails."""

    family = "control"

    def score(self, tokens):
        """Fail."""
        raise RuntimeError("broken")


def settings(name: str) -> dict[str, Any]:
    return {"keep": 1 / 3, "mass": name not in RECURRENT}


def state(model):
    """Everything that could be left on a model or on transformers."""
    parts = {
        name: (sorted(part.__dict__), list(part._forward_hooks), list(part._forward_pre_hooks), part.training)
        for name, part in model.named_modules()
    }
    return (
        parts,
        dict(ALL_ATTENTION_FUNCTIONS.__dict__),
        dict(ALL_MASK_ATTENTION_FUNCTIONS.__dict__),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_equals_singles(name):
    host = build(name)
    told = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    with compressed(host.model, Third(), **settings(name)) as handle:
        together = host.model.generate(**host.inputs(), **told)
        sizes = handle.plan.num_kept.tolist()
        for number, row in enumerate(ROWS):
            alone = host.model.generate(**host.inputs(rows=(row,)), **told)
            kept = handle.plan.num_kept.tolist()
            assert kept == (sizes[: len(kept)] if number == 0 else sizes[-len(kept) :])
            assert torch.equal(together.sequences[number, -4:], alone.sequences[0, -4:])
            difference = torch.stack(together.logits)[:, number] - torch.stack(alone.logits)[:, 0]
            assert difference.abs().max() <= 5e-5
    assert torch.equal(together.sequences[:, :-4], host.inputs()["input_ids"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_without_image_goes_along(name):
    host = build(name)
    told = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    with compressed(host.model, Third(), **settings(name)) as handle:
        together = host.model.generate(**host.inputs(rows=((1,), ())), **told)
        assert set(handle.tokens.sequence[handle.tokens.candidates].tolist()) == {0}
        alone = host.model.generate(**host.inputs(rows=((1,),)), **told)
    assert torch.equal(together.sequences[0, -4:], alone.sequences[0, -4:])
    assert (torch.stack(together.logits)[:, 0] - torch.stack(alone.logits)[:, 0]).abs().max() <= 5e-5


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=["3", "2x2"])
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(NO_BEAMS)))
def test_beams_in_a_batch_equal_beams_alone(name, options):
    host = build(name)
    answers, told = options.get("num_return_sequences", 1), {"return_dict_in_generate": True, "output_logits": True}
    with compressed(host.model, Third(), **settings(name)):
        output = host.model.generate(**host.inputs(), **GREEDY, **options, **told)
        together, first = output.sequences, output.logits[0].unflatten(0, (len(ROWS), -1))
        assert (first - first[:, :1]).abs().max() <= 5e-5  # all beams of a prompt see its pictures in order
        for number, row in enumerate(ROWS):
            alone = host.model.generate(**host.inputs(rows=(row,)), **GREEDY, **options)
            assert torch.equal(together[number * answers : (number + 1) * answers, -4:], alone[:, -4:])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_cache_says_the_same(name):
    """A dynamic cache, a static one, and a prompt that is read in chunks."""
    host = build(name)
    encoded = encode(host.model, host.inputs())
    mass, told = name not in RECURRENT, {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    plan = third(encoded.tokens)
    expected = generate(encoded, plan, mass=mass, positions="keep", **told)
    ways = [] if name in NO_STATIC else [{"cache_implementation": "static", "disable_compile": True}]
    ways += [] if name in NO_CHUNKS else [{"prefill_chunk_size": 5}]
    for options in ways:
        got = generate(encoded, plan, mass=mass, positions="keep", **told, **options)
        assert torch.equal(got.sequences, expected.sequences), options
        assert (torch.stack(got.logits) - torch.stack(expected.logits)).abs().max() <= 1e-4, options


def test_lost_features_are_refused(monkeypatch):
    """Transformers before 5.23 lose them when they read in chunks."""
    host = build("llava")
    stock = host.model.prepare_inputs_for_generation

    def lossy(*args, **kwargs):
        return {**stock(*args, **kwargs), "mm_encoder_outputs": None}

    with compressed(host.model, Third(), keep=1 / 3):
        expected = host.model.generate(**host.inputs(), **GREEDY)
        monkeypatch.setattr(host.model, "prepare_inputs_for_generation", lossy)
        with pytest.raises(ValueError, match="generate lost the features that belong there"):
            host.model.generate(**host.inputs(), **GREEDY)
        monkeypatch.undo()
        assert torch.equal(host.model.generate(**host.inputs(), **GREEDY), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_second_turn_reads_only_what_is_new(name):
    """On the cache of the first answer, as if all of it had been read anew."""
    host = build(name)
    inputs = host.inputs()
    told = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    asked = torch.tensor([[33, 44, 55], [66, 77, 88]])
    with compressed(host.model, Third(), **settings(name)) as handle:
        first = host.model.generate(**inputs, **told)
        before = first.past_key_values.get_seq_length()
        ids = torch.cat([first.sequences, asked], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 7, dtype=torch.long)], 1)
        second = host.model.generate(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **told)
        after = second.past_key_values.get_seq_length()
        longer = {**inputs, "input_ids": ids, "attention_mask": mask}
        for kind in host.types or [key for key in inputs if key.endswith("token_type_ids")]:
            longer[kind] = torch.cat([inputs[kind], torch.ones(2, 7).to(inputs[kind]) * (name == "paligemma")], 1)
        fresh = host.model.generate(**longer, **told)
    assert after == before + 7 and handle.turn is not None
    assert torch.equal(second.sequences[:, : ids.shape[1]], ids)
    assert torch.equal(second.sequences, fresh.sequences)
    assert (torch.stack(second.logits) - torch.stack(fresh.logits)).abs().max() <= 1e-4


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(NO_LATER_PICTURES)))
def test_later_turns_bring_pictures(name):
    """Every row has a picture in the cache, another comes with the second question; as if all had been read anew."""
    host = build(name)
    told = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    rows = 1 if name in RECURRENT else 2  # a state would read the padding between turns
    old, new = ((0,), (1,))[:rows], ((2,), (0,))[:rows]
    both = tuple((*a, *b) for a, b in zip(old, new, strict=True))
    one, other = host.inputs(rows=old), host.inputs(rows=new)
    later = int(name == "paligemma")  # what is read in both directions cannot go on

    def joined(ids: torch.Tensor, tail: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs so far with an answer of four tokens and what is asked next."""
        found = {"input_ids": torch.cat([ids, tail["input_ids"]], 1)}
        for key in ("attention_mask", *[key for key in one if key.endswith("token_type_ids")]):
            answered = torch.full((rows, 4), 1 if key == "attention_mask" else later).to(one[key])
            found[key] = torch.cat([so_far[key], answered, tail[key]], 1)
        return found

    with compressed(host.model, Third(), **settings(name)):
        first = host.model.generate(**one, **told)
        cache, so_far = first.past_key_values, one
        tail = {key: value + later * key.endswith("token_type_ids") for key, value in other.items()}
        so_far = joined(first.sequences, tail)
        second = host.model.generate(**so_far, **host.look(new), past_key_values=cache, **told)
        fresh = host.model.generate(**so_far, **host.look(both), **told)
        assert torch.equal(second.sequences[:, :-4], so_far["input_ids"])
        assert (torch.stack(second.logits) - torch.stack(fresh.logits)).abs().max() <= 1e-4
        assert torch.equal(second.sequences, fresh.sequences)
    with compressed(host.model, Third(), **settings(name)):
        so_far = one
        cache = host.model.generate(**one, **told).past_key_values
        so_far = joined(first.sequences, tail)
        host.model.generate(**so_far, **host.look(new), past_key_values=cache, **told)
        thanks = {key: torch.full((rows, 2), 33 if key == "input_ids" else 1) for key in so_far}
        if not later:
            thanks.update({key: torch.zeros(rows, 2).to(one[key]) for key in thanks if key.endswith("token_type_ids")})
        so_far = joined(second.sequences, thanks)
        third_turn = host.model.generate(**so_far, past_key_values=cache, **told)
        anew = host.model.generate(**so_far, **host.look(both), **told)
    assert (torch.stack(third_turn.logits) - torch.stack(anew.logits)).abs().max() <= 1e-4
    assert torch.equal(third_turn.sequences, anew.sequences)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_two_ways_agree_and_gradients_reach_the_weights(name):
    """Through `compressed` and through the explicit inputs, with labels; the merging weights are learnt."""
    host = build(name)
    inputs = host.inputs(side="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)

    class Learnt(Method):
        """Threes with learnt shares."""

        family = "learned"

        def plan(self, tokens, k):
            """Threes."""
            found = third(tokens)
            self.share = found.weight.float().requires_grad_()
            return type(found)(found.kept, found.slot, self.share, found.size, found.group)

    method = Learnt()
    with compressed(host.model, method, **settings(name)):
        loss = host.model(**inputs, labels=labels).loss
    loss.backward()
    tokens = encode(host.model, inputs).tokens
    assert bool((method.share.grad[tokens.candidates] != 0).all())
    assert all(parameter.grad is None for parameter in host.model.parameters())
    explicit = compress(host.model, {**inputs, "labels": labels}, method, **settings(name))
    assert torch.equal(host.model(**explicit).loss, loss)


@pytest.mark.parametrize("name", FAMILIES)
def test_explicit_inputs_suit_stock_generate(name):
    host = build(name)
    inputs = host.inputs()
    with compressed(host.model, Third(), keep=1 / 3, mass=False):
        expected = host.model.generate(**inputs, **GREEDY)
    short = compress(host.model, inputs, Third(), keep=1 / 3)
    assert short["input_ids"].shape[1] < inputs["input_ids"].shape[1]
    assert torch.equal(host.model.generate(**short, **GREEDY)[:, -4:], expected[:, -4:])


@pytest.mark.parametrize("name", ["qwen3_vl_mixed", "smolvlm", "llava_next", "internvl", "idefics2"])
def test_the_catalogue_runs_or_says_what_it_lacks(name):
    host = build(name)
    inputs = host.inputs()
    there = encode(host.model, inputs, SIGNALS).tokens
    for label, kind in catalogue().items():
        method = kind.for_width(there.x.shape[1])
        missing = method.missing(there)
        if missing:
            why = "acts inside" if method.cuts(8) else f"needs {', '.join(sorted(missing))}"
            with pytest.raises(ValueError, match=why):
                compress(host.model, inputs, method, keep=0.4)
        else:
            short = compress(host.model, inputs, method, keep=0.4, mass=True)
            assert host.model(**short).logits.isfinite().all(), label


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_left(name):
    host = build(name)
    inputs = host.inputs()
    before, deltas = state(host.model), getattr(host.model.base_model, "rope_deltas", None)
    compress(host.model, inputs, "kmeans", keep=0.5, mass=False)
    encode(host.model, inputs, SIGNALS)
    assert state(host.model) == before and getattr(host.model.base_model, "rope_deltas", None) is deltas
    with pytest.raises(RuntimeError, match="broken"), compressed(host.model, Broken(), **settings(name)):
        host.model.generate(**inputs, **GREEDY)
    with pytest.raises(RuntimeError, match="broken"), compressed(host.model, Broken(), **settings(name)):
        host.model(**inputs)
    wrong = {key: value[..., :1] if key.startswith(PIXELS) else value for key, value in inputs.items()}
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        encode(host.model, wrong, SIGNALS)
    assert state(host.model) == before


def test_turns_that_cannot_go_on():
    host = build("llava")
    inputs, told = host.inputs(), {**GREEDY, "return_dict_in_generate": True}
    with compressed(host.model, Third(), keep=1 / 3):
        first = host.model.generate(**inputs, **told)
        cache, ids = first.past_key_values, torch.cat([first.sequences, first.sequences[:, -2:]], 1)
        with pytest.raises(ValueError, match="no image token 190 in input_ids"):  # the old ones are in the cache
            host.model.generate(input_ids=ids, pixel_values=inputs["pixel_values"], past_key_values=cache, **told)
        with pytest.raises(ValueError, match="input_ids differs in column 0 from the prompts and answers"):
            host.model.generate(input_ids=ids + 1, past_key_values=cache, **told)
        answered = ids.clone()
        answered[0, inputs["input_ids"].shape[1]] += 1
        with pytest.raises(ValueError, match=f"differs in column {inputs['input_ids'].shape[1]} from"):
            host.model.generate(input_ids=answered, past_key_values=cache, **told)
        with pytest.raises(ValueError, match="expected 2 dialogues of more than"):
            host.model.generate(input_ids=ids[:1], past_key_values=cache, **told)
    with compressed(host.model, Third(), keep=1 / 3), pytest.raises(ValueError, match="past_key_values holds"):
        host.model.generate(**inputs, past_key_values=cache, **told)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_cache_of_several_answers_is_not_gone_on_with(options):
    host = build("llava")
    told = {**GREEDY, "return_dict_in_generate": True, **options}
    with compressed(host.model, Third(), keep=1 / 3) as handle:
        first = host.model.generate(**host.inputs(), **told)
        assert handle.turn is None
        ids = torch.cat([first.sequences, first.sequences[:, -2:]], 1)[:2]
        with pytest.raises(ValueError, match="past_key_values holds"):
            host.model.generate(input_ids=ids, past_key_values=first.past_key_values, **GREEDY)


def test_a_turn_that_failed_on_the_way_is_not_gone_on_with():
    host = build("llava")
    told = {**GREEDY, "return_dict_in_generate": True}

    def fail(*_, **__):
        raise RuntimeError("broken")

    with compressed(host.model, Third(), keep=1 / 3):
        first = host.model.generate(**host.inputs(), **told)
        ids = torch.cat([first.sequences, first.sequences[:, -2:]], 1)
        with pytest.raises(RuntimeError, match="broken"):
            host.model.generate(input_ids=ids, past_key_values=first.past_key_values, logits_processor=[fail], **GREEDY)
        with pytest.raises(ValueError, match="past_key_values holds"):
            host.model.generate(input_ids=ids, past_key_values=first.past_key_values, **GREEDY)


def test_lengths_of_a_generation_config_count_the_full_prompt():
    host = build("llava")
    inputs = host.inputs()
    length = inputs["input_ids"].shape[1]
    config = copy.deepcopy(host.model.generation_config)
    config.update(max_length=length + 3, do_sample=False, max_new_tokens=None)
    assert host.model.generate(**inputs, generation_config=config).shape[1] == length + 3
    with compressed(host.model, Third(), keep=1 / 3):
        assert host.model.generate(**inputs, generation_config=config).shape[1] == length + 3
        assert host.model.generate(**inputs, max_length=length + 2, do_sample=False).shape[1] == length + 2
    assert config.max_length == length + 3


def test_the_decoder_is_given_what_it_is_given_without_compression():
    host = build("llava")
    given: list[set[str]] = []
    hook = host.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(set(kwargs)), with_kwargs=True
    )
    host.model.generate(**host.inputs(), **GREEDY)
    stock = given[0]
    given.clear()
    with compressed(host.model, Third(), keep=1 / 3, mass=False):
        host.model.generate(**host.inputs(), **GREEDY)
    hook.remove()
    assert given and given[0] == stock


@pytest.mark.parametrize("config", [None, GenerationConfig(do_sample=False)])
def test_lengths_of_the_model_count_the_full_prompt(config):
    host = build("llava")
    inputs = host.inputs()
    length = inputs["input_ids"].shape[1]
    host.model.generation_config.update(max_length=length + 3, min_length=length + 2, do_sample=False)
    assert host.model.generate(**inputs, generation_config=config).shape[1] == length + 3
    with compressed(host.model, Third(), keep=1 / 3), warnings.catch_warnings():
        warnings.filterwarnings("error", "Unfeasible length")
        assert host.model.generate(**inputs, generation_config=config).shape[1] == length + 3
    assert host.model.generation_config.max_length == length + 3


def test_criteria_and_processors_are_shown_the_full_prompt():
    host = build("llava")
    inputs = host.inputs()
    seen: list[torch.Tensor] = []

    def after_two(ids, scores, **_):
        seen.append(ids)
        return torch.full((len(ids),), ids.shape[1] >= inputs["input_ids"].shape[1] + 2)

    def note(ids, scores):
        seen.append(ids)
        return scores

    def allowed(row, ids):
        assert torch.equal(ids[: inputs["input_ids"].shape[1]], inputs["input_ids"][row])
        return [7, 8, 9]

    with compressed(host.model, Third(), keep=1 / 3):
        said = host.model.generate(
            **inputs,
            **GREEDY,
            num_beams=2,
            stopping_criteria=[after_two],
            logits_processor=[note],
            prefix_allowed_tokens_fn=allowed,
        )
    assert said.shape[1] == inputs["input_ids"].shape[1] + 2
    assert set(said[:, -2:].flatten().tolist()) <= {7, 8, 9}
    for ids in seen:
        prompts = inputs["input_ids"].repeat_interleave(len(ids) // len(inputs["input_ids"]), 0)
        assert torch.equal(ids[:, : prompts.shape[1]], prompts)


def test_threads_take_turns():
    """Two threads in one context give what each gives alone, and none reads the prompt uncompressed."""
    host = build("llava")
    given = [host.inputs(rows=((0,),)), host.inputs(rows=((1,),))]
    said: dict[int, torch.Tensor] = {}
    with compressed(host.model, Third(), keep=1 / 3):
        expected = [host.model.generate(**inputs, **GREEDY) for inputs in given]

        def ask(number: int) -> None:
            said[number] = host.model.generate(**given[number % 2], **GREEDY)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(said) == 6
    for number, answer in said.items():
        assert torch.equal(answer, expected[number % 2])


@pytest.mark.parametrize("method", ["vision_zip", "kmeans", "fastv"])
def test_inference_mode_and_autocast(method):
    """Inference mode says what no_grad says; under autocast plans are those of full precision."""
    host = build("llava")
    inputs = host.inputs()
    with compressed(host.model, method, keep=0.8) as handle:
        expected, plan = host.model.generate(**inputs, **GREEDY), handle.plan
        with torch.inference_mode():
            assert torch.equal(host.model.generate(**inputs, **GREEDY), expected)
        tokens = handle.tokens
    if method != "fastv":
        with torch.autocast("cpu", torch.bfloat16):
            again = get_method(method)(tokens, plan.num_kept)
        assert torch.equal(again.kept, plan.kept) and torch.equal(again.slot, plan.slot)


def test_padding_between_turns_is_refused_where_a_state_reads_it():
    host = build("qwen3_5")
    inputs, told = host.inputs(rows=((0,), (1,))), {**GREEDY, "return_dict_in_generate": True}
    with compressed(host.model, Third(), keep=1 / 3, mass=False):
        first = host.model.generate(**inputs, **told)
        ids = torch.cat([first.sequences, torch.tensor([[5, 6], [0, 6]])], 1)
        mask = torch.cat([inputs["attention_mask"], torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 1]])], 1)
        with pytest.raises(ValueError, match="layers of linear_attention would read the padding between turns"):
            host.model.generate(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **told)


def test_sampling_repeats_and_streams(capsys):
    host = build("qwen2_5_vl")

    class Numbers:
        """A tokenizer that writes ids."""

        def decode(self, ids, **options):
            """Ids with blanks."""
            return " ".join(map(str, torch.as_tensor(ids).flatten().tolist())) + "\n"

    with compressed(host.model, Third(), keep=1 / 3):
        torch.manual_seed(0)
        drawn = host.model.generate(**host.inputs(), max_new_tokens=3, do_sample=True, num_return_sequences=2)
        assert torch.equal(drawn[:, :-3], host.inputs()["input_ids"].repeat_interleave(2, 0))
        inputs = host.inputs(rows=((0,),))
        said = host.model.generate(**inputs, **GREEDY, streamer=TextStreamer(Numbers(), skip_prompt=True))
    assert capsys.readouterr().out.split() == [str(number) for number in said[0, -4:].tolist()]


def test_a_pipeline_answers(host):
    """The stock pipeline over the embedded host, with all tokens and with few."""
    from crtc.tasks.picture import Glyphs

    picture = Glyphs("test", 1, 12)[0]
    model, processor = host
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    talk = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture.image},
                {"type": "text", "text": picture.questions[0].text},
            ],
        }
    ]
    stock = ask(text=talk, max_new_tokens=3, return_full_text=False)
    with compressed(model, "kmeans", keep=1.0):
        assert ask(text=talk, max_new_tokens=3, return_full_text=False) == stock
    with compressed(model, "kmeans", count=64) as handle:
        assert ask(text=talk, max_new_tokens=3, return_full_text=False)[0]["generated_text"]
    assert handle.plan.num_kept.tolist() == [64]


@pytest.mark.parametrize("name", ["llava", "internvl", "smolvlm", "qwen3_vl_mixed"])
def test_counts_are_of_groups(name):
    """Tiles and images one by one, a clip as a whole."""
    host = build(name)
    encoded = encode(host.model, host.inputs())
    plan = cut(encoded.tokens)
    short = shorten(encoded, plan, mass=False, positions="keep")
    assert int((columns(encoded, plan) >= 0).sum()) == int(short["attention_mask"].sum())
    assert (
        encoded.tokens.group_sizes.tolist()
        == {
            "llava": [36, 36, 36],
            "internvl": [9] * 6,
            "smolvlm": [9] * 3,
            "qwen3_vl_mixed": [6, 8, 9],
        }[name]
    )
