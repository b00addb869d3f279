"""What is asked: pictures with questions, from the glyph generator or from a user's own file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from crtc.retention import Box
from crtc.tasks.glyphs.photographs import SPLITS, Split
from crtc.tasks.glyphs.questions import ask
from crtc.tasks.glyphs.scene import make_scene


@dataclass(frozen=True)
class Question:
    """One question about a picture.

    Args:
        text: of the question.
        answers: accepted ones, the first is the reference.
        boxes: evidence, as left, top, right, bottom in pixels of the picture; may be empty.
        family: kind of question, for the breakdown.
    """

    text: str
    answers: tuple[str, ...]
    boxes: tuple[Box, ...] = ()
    family: str = "all"


@dataclass(frozen=True)
class Picture:
    """An image and what is asked about it."""

    image: Image.Image
    questions: tuple[Question, ...]


class Task(Protocol):
    """A fixed list of pictures with questions."""

    name: str

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def __getitem__(self, index: int) -> Picture:
        """One picture."""
        ...


class Glyphs:
    """Questions about generated scenes of real photographs, shapes and handwritten digits.

    Args:
        split: whose photographs and digits are used.
        pictures: number of scenes.
        questions: per scene.
        seed: of the scenes; the same number gives the same task.

    Raises:
        ValueError: if the split is unknown or a number is not positive.
    """

    def __init__(self, split: Split = "test", pictures: int = 100, questions: int = 12, seed: int = 0):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {SPLITS}")
        if pictures < 1 or questions < 1:
            raise ValueError(f"pictures is {pictures} and questions {questions}, expected at least 1 each")
        self.name = f"glyphs-{split}"
        self.split: Split = split
        self.pictures, self.questions, self.seed = pictures, questions, seed

    def __len__(self) -> int:
        return self.pictures

    def __getitem__(self, index: int) -> Picture:
        """Scene `index` with its questions; families take turns from scene to scene, as far as scenes allow."""
        if not 0 <= index < self.pictures:
            raise IndexError(index)
        scene = make_scene(self.split, self.seed, index)
        random = np.random.default_rng([SPLITS.index(self.split), self.seed, index])
        asked = ask(scene, random, self.questions, start=index * self.questions)
        questions = tuple(Question(q.text, (q.answer,), tuple(q.evidence), q.family) for q in asked)
        return Picture(Image.fromarray(scene.image), questions)


class JsonLines:
    """Questions of a user: one JSON object a line with `image` (path, relative to the file), `question`, `answers`
    (accepted ones) or `answer`, and optionally `boxes` and `family`. Lines of the same image are asked together.

    Args:
        path: of the file.

    Raises:
        ValueError: if a line cannot be read, an image is missing, or there are no lines.
    """

    def __init__(self, path: Path | str):
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} is no file, expected a file of JSON lines")
        self.name = path.stem
        asked: dict[Path, list[Question]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                image, question = _read_line(line, f"{path}:{number}")
                asked.setdefault(path.parent / image, []).append(question)
        if not asked:
            raise ValueError(f"{path} holds no questions")
        for image_path in asked:
            if not image_path.is_file():
                raise ValueError(f"image {image_path} does not exist")
        self._asked = list(asked.items())
        stats = [(image_path.stat().st_size, image_path.stat().st_mtime_ns) for image_path in asked]
        self.content = hashlib.sha256(path.read_bytes() + repr(stats).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._asked)

    def __getitem__(self, index: int) -> Picture:
        path, questions = self._asked[index]
        try:
            return Picture(Image.open(path).convert("RGB"), tuple(questions))
        except OSError as error:
            raise ValueError(f"image {path} cannot be read: {error}") from error


def _read_line(line: str, where: str) -> tuple[str, Question]:
    try:
        entry: dict[str, Any] = json.loads(line)
        answers: Sequence[str] = entry["answers"] if "answers" in entry else [entry["answer"]]
        boxes = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in entry.get("boxes", ()))
        question = Question(entry["question"], tuple(map(str, answers)), boxes, entry.get("family", "all"))
        image = entry["image"]
        if not all(isinstance(text, str) for text in (image, question.text, question.family)):
            raise TypeError("image, question and family are texts")
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} is not a question: {error!r}; expected image, question, answers, optional boxes"
        ) from error
    if isinstance(answers, str) or not question.answers:
        raise ValueError(f"{where} has answers {answers!r}, expected a list of accepted answers")
    return image, question
