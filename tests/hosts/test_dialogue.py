"""Pictures and questions in, logits at the answers out; compared with plain calls of the stock model and processor."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from crtc.hosts import Encoded, Positions, encode, encoder_outputs, shorten
from crtc.hosts.dialogue import (
    LLAVA_PROMPT,
    answer_ids,
    answer_logits,
    dialogue,
    logits_and_looks,
    prompt_of,
    prompts,
    right_questions,
    right_rows,
    shared_logits,
    shortened_targets,
)
from crtc.hosts.embedded import load_host, make_processor
from crtc.methods import CrossModalSimilarity, KMeans, Method
from crtc.methods.reinforced_scorer import ReinforcedScorer
from crtc.tasks.picture import Glyphs, Picture, Question
from crtc.tokens import Tokens

Host = tuple[Any, Any]
AFTER = "USER: {{ messages[0]['content'][1]['text'] }} <image>\n ASSISTANT:"
"""A template with the picture behind the question."""


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    task = Glyphs("test", 2, 12)
    return [replace(task[i], questions=task[i].questions[:5]) for i in range(2)]


def shared_inputs(model: Any, talk: Any) -> dict[str, Any]:
    """The inputs of `shared_logits`: pictures encoded once."""
    text = {name: value for name, value in talk.inputs.items() if name != "pixel_values"}
    images = model.model.get_image_features(pixel_values=talk.inputs["pixel_values"], return_dict=True)
    images.pooler_output = list(images.pooler_output)
    return {**text, "mm_encoder_outputs": {"image": images}}


@pytest.mark.parametrize("template", [None, AFTER], ids=["picture first", "picture last"])
@torch.no_grad()
def test_shared_prefix_says_what_plain_calls_say(host: Host, pictures: list[Picture], template: str | None) -> None:
    model, processor = host
    if template is not None:
        processor = make_processor()
        processor.chat_template = template
    talk = dialogue(processor, pictures)
    plain = {**talk.inputs, "pixel_values": talk.inputs["pixel_values"][talk.image_of]}
    expected, tokens, row = answer_logits(model, plain, talk.targets)
    got = shared_logits(model, shared_inputs(model, talk), talk.image_of, talk.targets)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(**plain).logits[talk.targets != -100], expected)
    assert torch.equal(tokens, talk.targets[talk.targets != -100])
    assert row.tolist() == sorted(row.tolist())


@torch.no_grad()
def test_looks_are_the_attention_of_plain_calls(host: Host, pictures: list[Picture]) -> None:
    model, processor = host
    talk = dialogue(processor, pictures)
    inputs = shared_inputs(model, talk)
    logits, looks = logits_and_looks(model, inputs, talk.image_of, talk.targets)
    torch.testing.assert_close(logits, shared_logits(model, inputs, talk.image_of, talk.targets), atol=1e-4, rtol=1e-4)
    assert model.model.language_model.config._attn_implementation == "sdpa"
    eager, _ = load_host()
    eager.set_attn_implementation("eager")
    row = 7
    one = {name: value[row : row + 1] for name, value in talk.inputs.items() if name != "pixel_values"}
    pixels = talk.inputs["pixel_values"][talk.image_of[row : row + 1]]
    attentions = eager(**one, pixel_values=pixels, output_attentions=True).attentions
    behind = (one["input_ids"][0] == model.config.image_token_id).nonzero()[-1, 0] + 1
    asks = one["attention_mask"][0].bool() & (torch.arange(one["input_ids"].shape[1]) >= behind)
    expected = sum(layer[0, :, asks].square().sum((0, 1)) for layer in attentions)
    torch.testing.assert_close(looks[row], expected, atol=1e-4, rtol=1e-4)


def test_looks_need_the_picture_first(host: Host, pictures: list[Picture]) -> None:
    model, _ = host
    processor = make_processor()
    processor.chat_template = AFTER
    talk = dialogue(processor, pictures)
    with pytest.raises(ValueError, match="before their questions"):
        logits_and_looks(model, shared_inputs(model, talk), talk.image_of, talk.targets)
    assert model.model.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("positions", ["keep", "repack"])
@torch.no_grad()
def test_shared_prefix_of_shortened_prompts(
    host: Host, pictures: list[Picture], mass: bool, positions: Positions
) -> None:
    model, processor = host
    talk = dialogue(processor, pictures)
    encoded = encode(model, talk.inputs, image_of=talk.image_of)
    plan = KMeans()(encoded.tokens, torch.full((10,), 32))
    short = shorten(encoded, plan, mass=mass, positions=positions)
    targets = shortened_targets(encoded, plan, talk.targets)
    expected, _, _ = answer_logits(model, short, targets)
    images = short["mm_encoder_outputs"]["image"].pooler_output
    shared = {**short, "mm_encoder_outputs": encoder_outputs([images[0], images[5]])}
    got = shared_logits(model, shared, talk.image_of, targets)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_ids_are_those_of_the_processor(host: Host, pictures: list[Picture]) -> None:
    _, processor = host
    talk = dialogue(processor, pictures)
    questions = [(picture.image, question) for picture in pictures for question in picture.questions]
    for row, (image, question) in enumerate(questions):
        stock = processor(images=image, text=prompt_of(processor, question.text), return_tensors="pt")
        prompt = stock["input_ids"][0].tolist()
        answer = [*processor.tokenizer(question.answers[0], add_special_tokens=False).input_ids]
        answer += [processor.tokenizer.eos_token_id]
        width = int(talk.inputs["attention_mask"][row].sum())
        assert talk.inputs["input_ids"][row, :width].tolist() == prompt + answer
        assert not talk.inputs["attention_mask"][row, width:].any()
        asked = (talk.targets[row] != -100).nonzero()[:, 0].tolist()
        assert asked == list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
        assert talk.targets[row][talk.targets[row] != -100].tolist() == answer
        assert torch.equal(talk.inputs["pixel_values"][talk.image_of[row]], stock["pixel_values"][0])
    assert talk.image_of.tolist() == [0] * 5 + [1] * 5
    assert talk.question.tolist() == list(range(10))


def test_prompt_without_a_chat_template() -> None:
    class Bare:
        chat_template = None

    assert prompt_of(Bare(), "why?") == LLAVA_PROMPT.format(question="why?")  # type: ignore[arg-type]


def with_answers(pictures: list[Picture], answer: str) -> list[Picture]:
    return [replace(p, questions=tuple(replace(q, answers=(answer,)) for q in p.questions)) for p in pictures]


@torch.no_grad()
def seen(host: Host, pictures: list[Picture]) -> tuple[Encoded, Tokens, torch.Tensor]:
    model, processor = host
    talk = dialogue(processor, pictures)
    encoded = encode(model, talk.inputs, image_of=talk.image_of)
    return encoded, prompts(encoded, talk.targets), talk.targets


@pytest.mark.parametrize(
    "method", [CrossModalSimilarity(), ReinforcedScorer(192), KMeans()], ids=lambda m: type(m).__name__
)
def test_a_method_never_sees_the_answer(host: Host, pictures: list[Picture], method: Method) -> None:
    some = [replace(pictures[0], questions=pictures[0].questions[:2])]
    (_, short, _), (_, long, _) = (seen(host, with_answers(some, text)) for text in ("red", "3 1 4 1 5"))
    assert len(short) == len(long) and torch.equal(short.x, long.x)
    assert torch.equal(short.kind, long.kind) and torch.equal(short.sequence, long.sequence)
    k = torch.tensor([16, 16])
    with torch.no_grad():
        one, other = method(short, k), method(long, k)
    assert torch.equal(one.kept, other.kept) and torch.equal(one.slot, other.slot)
    assert torch.equal(one.weight, other.weight)


def test_prompts_end_where_answers_begin(host: Host, pictures: list[Picture]) -> None:
    _, processor = host
    some = [replace(pictures[0], questions=pictures[0].questions[:3])]
    _, asked, _ = seen(host, some)
    for number, question in enumerate(some[0].questions):
        stock = processor(images=some[0].image, text=prompt_of(processor, question.text), return_tensors="pt")
        assert int((asked.sequence == number).sum()) == stock["input_ids"].shape[1]


def test_every_accepted_answer_has_a_row(host: Host, pictures: list[Picture]) -> None:
    questions = (Question("what color is the cross?", ("red", "dark red")), Question("how many things?", ("3",)))
    talk = dialogue(host[1], [replace(pictures[0], questions=questions), replace(pictures[1], questions=questions[:1])])
    assert talk.question.tolist() == [0, 0, 1, 2, 2]
    assert talk.image_of.tolist() == [0, 0, 0, 1, 1]
    answers = ("red", "dark red", "3", "red", "dark red")
    for row, answer in zip(talk.targets, answers, strict=True):
        assert row[row != -100].tolist() == answer_ids(host[1].tokenizer, answer)


def test_no_questions_is_an_error(host: Host) -> None:
    with pytest.raises(ValueError, match="1 pictures hold no questions"):
        dialogue(host[1], [Picture(Image.new("RGB", (192, 192)), ())])


@torch.no_grad()
def test_a_right_row_is_what_greedy_decoding_says(host: Host, pictures: list[Picture]) -> None:
    model, processor = host
    talk = dialogue(processor, pictures)
    plain = {**talk.inputs, "pixel_values": talk.inputs["pixel_values"][talk.image_of]}
    logits, expected, row = answer_logits(model, plain, talk.targets)
    right = right_rows(logits, expected, row, len(talk.targets))
    questions = [(picture.image, question) for picture in pictures for question in picture.questions]
    for number, (image, question) in enumerate(questions):
        inputs = processor(images=image, text=prompt_of(processor, question.text), return_tensors="pt")
        answer = talk.targets[number][talk.targets[number] != -100].tolist()
        said = model.generate(**inputs, max_new_tokens=len(answer), do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert bool(right[number]) == (said.tolist() == answer)


def test_right_rows() -> None:
    logits = torch.eye(3)[[0, 1, 2, 2]]
    right = right_rows(logits, torch.tensor([0, 1, 0, 2]), torch.tensor([0, 0, 1, 1]), 3)
    assert right.tolist() == [True, False, True]


@torch.no_grad()
def test_targets_move_with_the_prompt(host: Host, pictures: list[Picture]) -> None:
    encoded, _, targets = seen(host, pictures[:1])
    plan = KMeans()(encoded.tokens, torch.full((5,), 9))
    short = shortened_targets(encoded, plan, targets)
    ids = shorten(encoded, plan, mass=False, positions="keep")["input_ids"]
    assert short.shape == ids.shape == (5, targets.shape[1] - 567)
    for row in range(5):
        places = (short[row] != -100).nonzero()[:, 0]
        assert torch.equal(short[row, places], targets[row][targets[row] != -100])
        assert torch.equal(ids[row, places[1:]], short[row, places[:-1]])  # each answer token is read at the next place


def test_a_question_is_right_if_any_of_its_answers_is() -> None:
    right = right_questions(torch.tensor([False, True, False, False, True]), torch.tensor([0, 0, 1, 1, 2]))
    assert right.tolist() == [True, False, True]
