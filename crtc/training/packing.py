"""Scenes as training of the host sees them: many questions packed behind one picture, and what each word is about."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from crtc.tasks.glyphs.photographs import Split
from crtc.tasks.glyphs.questions import FAMILIES, LEAD, RATIO, Question, ask
from crtc.tasks.glyphs.scene import (
    BYSTANDERS,
    CELL,
    COLORS,
    NUMBER,
    PATCH,
    SHAPES,
    Box,
    Scene,
    Thing,
    make_scene,
    size_class,
)
from crtc.tasks.glyphs.tokenizer import PROMPT, make_tokenizer

GRID = 24
IGNORE = -100
TURNS = (
    *FAMILIES,
    *("number", "count", "count", "exist", "exist", "relation", "twohop", "twohop"),
)
"""Families as training asks them: those that take longer to learn come more often."""
NOWHERE = (GRID, GRID, 0)
"""What is known of a thing that is not there."""
POINTED = ("color", "shape", "digit", "number", "twohop")
"""Families whose answer is told by one thing, the last of the evidence."""
PAIRED = ("relation", "compare")
"""Families that ask about two things."""


@cache
def glyph_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the embedded host, made once."""
    return make_tokenizer()


@dataclass(frozen=True)
class PackedScenes:
    """A batch of scenes, each with several questions behind one another in a single text."""

    pixels: Float[Tensor, "B 3 H W"]
    patch: Int[Tensor, "B V"]  # index of every patch in the 24 x 24 grid
    labels: dict[str, Int[Tensor, "B V"]]
    presence: Float[Tensor, "B P"]  # which colour-kind pairs and which bystanders the scene holds
    ids: Int[Tensor, "B L"]  # questions and answers
    segment: Int[Tensor, "B L"]  # question that a token belongs to, -1 padding
    position: Int[Tensor, "B L"]  # place in its question
    targets: Int[Tensor, "B L"]  # next token where it is an answer token, else -100
    mention: Int[Tensor, "B L 3"]  # row, column and size of the thing that a word names, else -100
    order: Int[Tensor, "B L 3"]  # 1 where the first thing exceeds the second, 0 where it is less, at the second's word
    target: Int[Tensor, "B L 3"]  # the same of the thing that tells the answer, at the last token of a question
    families: Int[Tensor, "B Q"]

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, *args: Any, **kwargs: Any) -> "PackedScenes":
        """The same batch on another device, as `Tensor.to`."""
        moved = {f.name: getattr(self, f.name).to(*args, **kwargs) for f in fields(self) if f.name != "labels"}
        return PackedScenes(**moved, labels={name: label.to(*args, **kwargs) for name, label in self.labels.items()})


def pack(scenes: list[Scene], questions: int, random: np.random.Generator) -> PackedScenes:
    """Ask `questions` questions about each scene and pack them."""
    tokenizer = glyph_tokenizer()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    side = scenes[0].image.shape[0] // PATCH
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    cell = CELL // PATCH  # windows stand on whole cells, so that "row 2" says the same in every scene
    corner = cell * torch.from_numpy(random.integers(0, (GRID - side) // cell + 1, (len(scenes), 2)))
    steps = torch.arange(side)
    patch = (((corner[:, :1] + steps) * GRID)[:, :, None] + (corner[:, 1:] + steps)[:, None, :]).flatten(1)
    labels = {
        name: torch.from_numpy(np.stack([getattr(scene.labels, name) for scene in scenes])).flatten(1)
        for name in ("kind", "color", "place", "middle", "size", "shade")
    }
    labels |= {"row": patch // GRID, "column": patch % GRID}  # where it is must survive the tower, for relations
    kinds = (*SHAPES, NUMBER)
    first = 1 + len(SHAPES) + 10  # class of the first bystander
    present = [np.isin(first + np.arange(len(BYSTANDERS)), scene.labels.kind) for scene in scenes]
    pairs = torch.zeros(len(scenes), len(COLORS) * len(kinds))
    presence = torch.cat([pairs, torch.from_numpy(np.stack(present)).float()], 1)
    rows: list[dict[str, list[Any]]] = []
    families = torch.zeros(len(scenes), questions, dtype=torch.long)
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            presence[index, list(COLORS).index(thing.color) * len(kinds) + kinds.index(thing.kind)] = 1
        row: dict[str, list[Any]] = {name: [] for name in _FILL}
        for number, question in enumerate(
            ask(scene, random, questions, start=int(random.integers(len(TURNS))), families=TURNS)
        ):
            families[index, number] = list(FAMILIES).index(question.family)
            prompt = tokenizer(PROMPT.format(question=question.text)).input_ids
            prompt = prompt[prompt.index(image_id) + 1 :]
            answer = [*tokenizer(question.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            row["ids"] += prompt + answer[:-1]
            row["targets"] += [IGNORE] * (len(prompt) - 1) + answer
            row["segment"] += [number] * (len(prompt) + len(answer) - 1)
            row["position"] += range(len(prompt) + len(answer) - 1)
            about = _pointers(question, scene, corner[index].tolist(), prompt)
            for name, labels_of_words in about.items():
                row[name] += labels_of_words + [_NOTHING] * (len(answer) - 1)
        rows.append(row)
    text = {
        name: nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value
        )
        for name, value in _FILL.items()
    }
    return PackedScenes(pixels, patch, labels, presence, **text, families=families)


_FILL = {
    "ids": 0,
    "segment": -1,
    "position": 0,
    "targets": IGNORE,
    "mention": IGNORE,
    "order": IGNORE,
    "target": IGNORE,
}
_NOTHING = (IGNORE, IGNORE, IGNORE)


@cache
def _words(kind: str) -> frozenset[int]:
    words = {"color": COLORS, "kind": (*SHAPES, NUMBER)}[kind]
    return frozenset(cast(list[int], glyph_tokenizer().convert_tokens_to_ids([f"▁{word}" for word in words])))


def _mentions(prompt: list[int]) -> list[int]:
    """Where a question names things: "the red star", "the star", or "red" alone; the last word of each."""
    the = glyph_tokenizer().convert_tokens_to_ids("▁the")
    colored = [
        place for place, (word, follower) in enumerate(pairwise(prompt))
        if word in _words("color") and follower not in _words("kind")
    ]  # fmt: skip
    named = [
        place + 1 for place, (before, word) in enumerate(pairwise(prompt))
        if word in _words("kind") and (before in _words("color") or before == the)
    ]  # fmt: skip
    return sorted(colored + named)


def _pointers(
    question: Question, scene: Scene, corner: list[int], prompt: list[int]
) -> dict[str, list[tuple[int, int, int]]]:
    """For every token of a prompt which thing it mentions, how two things lie, and which thing tells the answer."""
    things = [_thing_in(scene, box) for box in question.evidence]
    looks = [_look(thing, corner) for thing in things]
    words = _mentions(prompt)
    labels = {name: [_NOTHING] * len(prompt) for name in ("mention", "order", "target")}
    if question.family in (*POINTED, *PAIRED) or len(things) == 1:
        for place, look in zip(words, looks, strict=False):
            labels["mention"][place] = look
    if question.family == "exist" and not things:
        labels["mention"][words[0]] = NOWHERE
    if question.family in PAIRED:
        labels["order"][words[1]] = _order(*things)
    if question.family in POINTED:
        labels["target"][-1] = looks[-1]
    return labels


def _thing_in(scene: Scene, box: Box) -> Thing:
    return next(thing for thing in scene.things if thing.box == box)


def _look(thing: Thing, corner: list[int]) -> tuple[int, int, int]:
    """Row and column in the 24 x 24 grid of the middle of a thing, and its class of size."""
    x, y = thing.center
    return corner[0] + int(y) // PATCH, corner[1] + int(x) // PATCH, size_class(thing.size)


def _order(first: Thing, second: Thing) -> tuple[int, int, int]:
    """Whether the first is further right, further down and bigger, where that is clear enough to be asked."""
    (x, y), (u, v) = first.center, second.center
    across, down = (IGNORE if abs(lead) < LEAD else int(lead > 0) for lead in (x - u, y - v))
    clear = max(first.size, second.size) >= RATIO * min(first.size, second.size)
    return across, down, int(first.size > second.size) if clear else IGNORE


class Scenes(IterableDataset[PackedScenes]):
    """Batches `start`, `start + 1`, ... of a stage; the same index always gives the same batch.

    `shape` holds `cells` and what else `make_scene` takes.
    """

    def __init__(
        self,
        split: Split,
        seed: int,
        start: int,
        stop: int,
        batch_size: int,
        questions: int,
        **shape: Any,
    ):
        self.split, self.seed, self.start, self.stop = split, seed, start, stop
        self.batch_size, self.questions = batch_size, questions
        self.shape = shape

    def __iter__(self) -> Iterator[PackedScenes]:
        for step in range(self.start, self.stop):
            numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
            scenes = [make_scene(self.split, self.seed, number, **self.shape) for number in numbers]
            yield pack(scenes, self.questions, np.random.default_rng([self.seed, step, self.shape["cells"]]))
