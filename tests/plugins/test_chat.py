"""Dialogues are answered as the package answers them, in any batch; options of tools become those of `generate`."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crtc.hosts.stock import load_stock
from crtc.methods import KMeans
from crtc.plugins.chat import Chat, Dialogue, cut, generation
from crtc.plugins.recipe import Recipe
from crtc.showing import answer
from crtc.tasks.picture import Glyphs, Picture

COUNT = 16
OPTIONS = {"max_new_tokens": 24, "temperature": 0, "do_sample": False}


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat("embedded", Recipe(KMeans(), count=COUNT), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    task = Glyphs("test", pictures=2, questions=3)
    return [task[0], task[1]]


def ask(picture: Picture, text: str) -> Dialogue:
    content = [{"type": "image", "image": picture.image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def test_answers_are_those_of_the_package(chat: Chat, pictures: list[Picture], host: Any) -> None:
    asked = [(picture, question.text) for picture in pictures for question in picture.questions]
    together = chat.answer([ask(*pair) for pair in asked], OPTIONS)
    alone = [answer(host, *pair, KMeans(), count=COUNT) for pair in asked]
    assert together == [shown.compressed for shown in alone]
    assert together != [shown.full for shown in alone]  # 16 of 576 tokens do change something


def test_dialogues_without_images_are_answered_by_the_model_as_it_is(chat: Chat, pictures: list[Picture]) -> None:
    words = [{"role": "user", "content": [{"type": "text", "text": "how many red things are there?"}]}]
    seen = ask(pictures[0], pictures[0].questions[0].text)
    mixed = chat.answer([words, seen, words], OPTIONS)
    assert mixed == [chat.answer([words], OPTIONS)[0], chat.answer([seen], OPTIONS)[0], mixed[0]]


def test_nothing_stays_on_the_model(chat: Chat, pictures: list[Picture]) -> None:
    before = dict(chat.model.__dict__)
    chat.answer([ask(pictures[0], "what color is the star?")], OPTIONS)
    assert chat.model.__dict__.keys() == before.keys()


def test_videos_are_refused(chat: Chat) -> None:
    with pytest.raises(ValueError, match="a dialogue holds 'video', expected text and images"):
        chat.answer([[{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]], OPTIONS)


def test_counts_beyond_the_image_are_refused(pictures: list[Picture]) -> None:
    greedy = Chat("embedded", Recipe(KMeans(), count=577), dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="count is 577, but a group has only 576"):
        greedy.answer([ask(pictures[0], "what color is the star?")], OPTIONS)


def test_unknown_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        Chat("embedded", Recipe(KMeans(), count=1), dtype="int8")


def test_stock_models(tmp_path: Any) -> None:
    model, processor = load_stock("embedded", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training and processor.tokenizer.padding_side == "left"
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_stock(tmp_path)
    with pytest.raises(ValueError, match="device 'nowhere' cannot be used"):
        load_stock("embedded", device="nowhere")


def test_models_without_a_chat_template_are_refused(tmp_path: Any) -> None:
    model, processor = load_stock("embedded")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        load_stock(tmp_path)


KNOWN = SimpleNamespace(max_new_tokens=None, temperature=1.0, top_p=1.0, top_k=50, num_beams=1, do_sample=False)
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@pytest.mark.parametrize(
    ("options", "settings", "stops"),
    [
        ({}, {"max_new_tokens": 1024, **GREEDY}, ()),
        ({"max_new_tokens": 8, "temperature": 0, "top_p": 1.0}, {"max_new_tokens": 8, **GREEDY}, ()),
        ({"temperature": 0.7}, {"max_new_tokens": 1024, "temperature": 0.7, "do_sample": True}, ()),
        ({"do_sample": True}, {"max_new_tokens": 1024, "do_sample": True}, ()),
        ({"do_sample": False, "temperature": 0.7}, {"max_new_tokens": 1024, **GREEDY}, ()),
        ({"until": ["\n\n", ""], "num_beams": 2}, {"max_new_tokens": 1024, "num_beams": 2, **GREEDY}, ("\n\n",)),
        ({"until": "END", "top_p": None}, {"max_new_tokens": 1024, **GREEDY}, ("END",)),
    ],
)
def test_options(options: dict[str, Any], settings: dict[str, Any], stops: tuple[str, ...]) -> None:
    assert generation(options, KNOWN) == (settings, stops)


def test_options_of_other_models_are_left_out_aloud() -> None:
    with pytest.warns(UserWarning, match="left out what is no option of generating: image_aspect_ratio"):
        assert "image_aspect_ratio" not in generation({"image_aspect_ratio": "original"}, KNOWN)[0]


def test_answers_end_where_the_first_stop_begins() -> None:
    assert cut("yes\n\nno END", ["END", "\n\n"]) == "yes"
    assert cut("yes", ["END"]) == "yes"
