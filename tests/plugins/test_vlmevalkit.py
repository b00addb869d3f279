"""The model for VLMEvalKit answers the kit's messages, with and without the kit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crtc.methods import KMeans
from crtc.plugins.vlmevalkit import Crtc, as_dialogue
from crtc.showing import answer
from crtc.tasks.picture import Glyphs, Picture


@pytest.fixture(scope="module")
def picture() -> Picture:
    return Glyphs("test", pictures=1, questions=3)[0]


@pytest.fixture(scope="module")
def path(picture: Picture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kit") / "scene.png"
    picture.image.save(path)
    return path


def test_answers_are_those_of_the_package(picture: Picture, path: Path, host: Any) -> None:
    """Made as an entry of `supported_VLM` is, and called as the kit calls it."""
    make = partial(Crtc, pretrained="embedded", method="kmeans", count=16, dtype="float32")
    model = make(device="cpu")
    for question in picture.questions:
        message = [{"type": "image", "value": str(path)}, {"type": "text", "value": question.text}]
        expected = answer(host, picture, question.text, KMeans(), count=16).compressed
        assert model.generate_inner(message, dataset="glyphs") == expected


def test_messages_become_dialogues(path: Path) -> None:
    message = [
        {"type": "text", "value": "be short", "role": "system"},
        {"type": "image", "value": str(path)},
        {"type": "text", "value": "what is red?"},
    ]
    system, user = as_dialogue(message)
    assert system == {"role": "system", "content": [{"type": "text", "text": "be short"}]}
    assert user["role"] == "user"
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert user["content"][0]["image"].mode == "RGB"


def test_what_is_neither_text_nor_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a message holds 'video'"):
        as_dialogue([{"type": "video", "value": "a.mp4"}])
    with pytest.raises(ValueError, match="cannot be read"):
        as_dialogue([{"type": "image", "value": str(tmp_path / "none.png")}])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no method is named 'kmeens'"):
        Crtc("embedded", method="kmeens", count=3)
    with pytest.raises(ValueError, match="expected exactly one of them"):
        Crtc("embedded", method="kmeans", count=3, keep=0.5)
