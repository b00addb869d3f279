"""Questions about a scene, their answers, and the boxes that hold the evidence."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np

from crtc.tasks.glyphs.scene import COLORS, NUMBER, SHAPES, Box, Scene, Thing, plural

T = TypeVar("T")
LEAD = 16
"""Pixels by which one thing must lie further than another, so that a relation is asked."""
RATIO = 1.4
"""By which one thing must be bigger, so that a comparison is asked."""
DIRECTIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Question:
    """One question with its answer and evidence."""

    family: str
    text: str
    answer: str
    evidence: tuple[Box, ...]


def _name(thing: Thing) -> str:
    return f"{thing.color} {thing.kind}"


def _pick(random: np.random.Generator, options: list[T]) -> T | None:
    return options[int(random.integers(len(options)))] if options else None


def _unique(scene: Scene) -> list[Thing]:
    """Things that no other thing shares colour and kind with."""
    counts = Counter(map(_name, scene.things))
    return [thing for thing in scene.things if counts[_name(thing)] == 1]


def _color(scene: Scene, random: np.random.Generator) -> Question | None:
    counts = Counter(thing.kind for thing in scene.things)
    thing = _pick(random, [thing for thing in scene.things if counts[thing.kind] == 1])
    return thing if thing is None else Question("color", f"what color is the {thing.kind}?", thing.color, (thing.box,))


def _shape(scene: Scene, random: np.random.Generator) -> Question | None:
    shapes = [thing for thing in scene.things if thing.kind != NUMBER]
    counts = Counter(thing.color for thing in shapes)
    thing = _pick(random, [thing for thing in shapes if counts[thing.color] == 1])
    return thing if thing is None else Question("shape", f"what shape is {thing.color}?", thing.kind, (thing.box,))


def _read(scene: Scene, random: np.random.Generator, *, several: bool) -> Question | None:
    numbers = [thing for thing in _unique(scene) if thing.kind == NUMBER and (len(thing.value) > 1) == several]
    thing = _pick(random, numbers)
    family = "number" if several else "digit"
    return thing if thing is None else Question(family, f"what is the {thing.color} number?", thing.value, (thing.box,))


def _digit(scene: Scene, random: np.random.Generator) -> Question | None:
    return _read(scene, random, several=False)


def _number(scene: Scene, random: np.random.Generator) -> Question | None:
    return _read(scene, random, several=True)


def _count(scene: Scene, random: np.random.Generator) -> Question | None:
    by_color = bool(random.random() < 0.5)
    words = list(COLORS) if by_color else [*SHAPES, NUMBER]
    word = words[int(random.integers(len(words)))]
    found = [thing for thing in scene.things if word == (thing.color if by_color else thing.kind)]
    text = f"how many {word} things?" if by_color else f"how many {plural(word)}?"
    return Question("count", text, str(len(found)), tuple(thing.box for thing in found)) if len(found) < 10 else None


def _exist(scene: Scene, random: np.random.Generator) -> Question | None:
    names = set(map(_name, scene.things))
    if random.random() < 0.5:
        thing = _pick(random, list(scene.things))
        name = thing and _name(thing)
    else:  # colour and kind are both there, but not together
        absent = {f"{a.color} {b.kind}" for a in scene.things for b in scene.things} - names
        name = _pick(random, sorted(absent))
    if name is None:
        return None
    found = tuple(thing.box for thing in scene.things if _name(thing) == name)
    return Question("exist", f"is there a {name}?", "yes" if found else "no", found)


def _pairs(scene: Scene) -> list[tuple[Thing, Thing]]:
    return list(permutations(_unique(scene), 2))


def _lead(first: Thing, second: Thing, direction: str) -> float:
    """How far `first` lies in a direction from `second`, in pixels between the centres."""
    (x, y), (u, v) = first.center, second.center
    return {"left of": u - x, "right of": x - u, "above": v - y, "below": y - v}[direction]


def _relation(scene: Scene, random: np.random.Generator) -> Question | None:
    direction = DIRECTIONS[int(random.integers(4))]
    pair = _pick(random, [pair for pair in _pairs(scene) if abs(_lead(*pair, direction)) >= LEAD])
    if pair is None:
        return None
    text = f"is the {_name(pair[0])} {direction} the {_name(pair[1])}?"
    return Question("relation", text, "yes" if _lead(*pair, direction) > 0 else "no", (pair[0].box, pair[1].box))


def _compare(scene: Scene, random: np.random.Generator) -> Question | None:
    clear = [(a, b) for a, b in _pairs(scene) if max(a.size, b.size) >= RATIO * min(a.size, b.size)]
    pair = _pick(random, clear)
    if pair is None:
        return None
    text = f"is the {_name(pair[0])} bigger than the {_name(pair[1])}?"
    return Question("compare", text, "yes" if pair[0].size > pair[1].size else "no", (pair[0].box, pair[1].box))


def _adjacent(thing: Thing, other: Thing, direction: str) -> bool:
    """Whether `other` lies in a cell that touches `thing` on that side."""
    (top, left, bottom, right), (t, c, b, d) = thing.cells, other.cells
    if direction in ("left of", "right of"):
        return t <= bottom and b >= top and (d == left - 1 if direction == "left of" else c == right + 1)
    return c <= right and d >= left and (b == top - 1 if direction == "above" else t == bottom + 1)


def _twohop(scene: Scene, random: np.random.Generator) -> Question | None:
    found = []
    for thing in _unique(scene):
        for direction in DIRECTIONS:
            others = [other for other in scene.things if other is not thing and _adjacent(thing, other, direction)]
            if len(others) == 1:
                found.append((thing, direction, others[0]))
    choice = _pick(random, found)
    if choice is None:
        return None
    thing, direction, other = choice
    if random.random() < 0.4:
        asked, answer = "color", other.color
    else:
        asked, answer = (NUMBER, other.value) if other.kind == NUMBER else ("shape", other.kind)
    return Question("twohop", f"what {asked} is {direction} the {_name(thing)}?", answer, (thing.box, other.box))


def _caption(scene: Scene, random: np.random.Generator) -> Question | None:
    color = _pick(random, sorted({thing.color for thing in scene.things}))
    found = sorted((thing for thing in scene.things if thing.color == color), key=lambda thing: thing.cells[:2])
    if not 1 <= len(found) <= 4:
        return None
    answer = ", ".join(thing.value or thing.kind for thing in found)
    return Question("caption", f"list the {color} things.", answer, tuple(thing.box for thing in found))


FAMILIES: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "color": _color,
    "shape": _shape,
    "digit": _digit,
    "number": _number,
    "count": _count,
    "exist": _exist,
    "relation": _relation,
    "compare": _compare,
    "twohop": _twohop,
    "caption": _caption,
}

ROUND = (*FAMILIES, "digit", "number", "count", "twohop", "caption")
"""Families in the order they are asked: once what is seen at a glance, twice what must be read, counted, listed or
reached through something else. The former survives any covering of the image, the latter is what tokens are for. Where
all numbers of a scene have been asked about, their second turns pass."""


def ask(
    scene: Scene, random: np.random.Generator, count: int, *, start: int = 0, families: Sequence[str] = ROUND
) -> list[Question]:
    """`count` questions about a scene, no text twice unless it must be.

    The `families` take turns, beginning with number `start`; one that the scene gives no question for is passed over.
    """
    asked: list[Question] = []
    seen: set[str] = set()
    tries = 0
    while len(asked) < count:
        question = FAMILIES[families[(start + tries) % len(families)]](scene, random)
        tries += 1
        if question is not None and (question.text not in seen or tries > 20 * count):
            asked.append(question)
            seen.add(question.text)
    return asked
