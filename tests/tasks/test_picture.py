"""A user's own questions."""

import json

import pytest
from PIL import Image

from crtc.tasks.picture import JsonLines, Question


@pytest.fixture
def folder(tmp_path):
    """A folder with two images."""
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (4, 3), color).save(tmp_path / name)
    return tmp_path


def write(folder, *lines):
    """A file of these lines, each as it is or as JSON."""
    path = folder / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_lines_of_one_image_are_asked_together(folder):
    path = write(
        folder,
        {"image": "a.png", "question": "what color?", "answer": "red"},
        "",
        {"image": "b.png", "question": "what color?", "answers": ["blue", "navy"], "family": "color"},
        {"image": "a.png", "question": "how many?", "answer": 1, "boxes": [[0, 1, 2, 3]]},
    )
    task = JsonLines(path)
    assert task.name == "mine" and len(task) == 2
    assert task[0].questions == (
        Question("what color?", ("red",)),
        Question("how many?", ("1",), ((0.0, 1.0, 2.0, 3.0),)),
    )
    assert task[1].questions == (Question("what color?", ("blue", "navy"), family="color"),)
    assert task[1].image.mode == "RGB" and task[1].image.getpixel((0, 0)) == (0, 0, 255)
    assert len(task) == 2


GOOD = {"image": "a.png", "question": "q", "answer": "x"}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "3",
        '"text"',
        "[]",
        "null",
        {"question": "q", "answer": "x"},
        {"image": "a.png", "answer": "x"},
        {"image": "a.png", "question": "q"},
        {**GOOD, "answers": "x"},
        {**GOOD, "answers": []},
        {**GOOD, "answers": 3},
        {**GOOD, "boxes": [[0, 1, 2]]},
        {**GOOD, "boxes": [[0, 1, 2, "right"]]},
        {**GOOD, "boxes": 3},
        {**GOOD, "boxes": None},
        {**GOOD, "image": 3},
        {**GOOD, "question": None},
        {**GOOD, "family": 3},
    ],
)
def test_a_bad_line_is_named(folder, line):
    path = write(folder, GOOD, line)
    with pytest.raises(ValueError, match=r"mine\.jsonl:2 "):
        JsonLines(path)


def test_a_missing_image_is_named(folder):
    with pytest.raises(ValueError, match=r"c\.png does not exist"):
        JsonLines(write(folder, {**GOOD, "image": "c.png"}))


def test_a_file_without_questions_is_refused(folder):
    with pytest.raises(ValueError, match=r"mine\.jsonl holds no questions"):
        JsonLines(write(folder, "", " "))
    with pytest.raises(ValueError, match=r"none\.jsonl is no file"):
        JsonLines(folder / "none.jsonl")
