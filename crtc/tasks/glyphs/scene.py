"""Scenes: coloured shapes and handwritten numbers on real photographs with clutter, and what is where.

A scene is laid out on cells of 32 x 32 pixels. Objects are shapes of 8 kinds (11 to 52 pixels) or numbers of one to
three handwritten digits, in 8 colours. Between them lie things that no question asks for: strokes, grey polygons,
patches of other photographs, and crowds of bystanders, small shapes of other kinds in other colours, as plain to see as
what is asked about. Without them nearly all that stands out is asked about, and any covering of the tokens keeps it.
Everything follows from `(split, seed, index)`.
"""

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import map_coordinates

from crtc.tasks.glyphs.photographs import SPLITS, Array, Split, digits, photographs

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.12, 0.14),
    "green": (0.12, 0.75, 0.18),
    "blue": (0.15, 0.25, 0.98),
    "yellow": (0.98, 0.90, 0.10),
    "purple": (0.62, 0.15, 0.85),
    "cyan": (0.10, 0.85, 0.90),
    "orange": (1.00, 0.52, 0.05),
    "white": (1.00, 1.00, 1.00),
}
SHAPES = ("disc", "square", "triangle", "plus", "cross", "ring", "star", "bar")
NUMBER = "number"
BYSTANDER_COLORS: dict[str, tuple[float, float, float]] = {
    "brown": (0.42, 0.26, 0.12),
    "pink": (1.00, 0.62, 0.76),
    "olive": (0.48, 0.50, 0.12),
    "teal": (0.02, 0.42, 0.42),
    "maroon": (0.42, 0.02, 0.12),
    "navy": (0.06, 0.06, 0.36),
    "silver": (0.68, 0.70, 0.72),
    "black": (0.02, 0.02, 0.02),
}
BYSTANDERS = ("moon", "heart", "arrow", "hourglass", "tee", "ell", "dome", "stripes")
SHADES = 8
"""Classes of brightness of a patch of background."""
CELL = 32
PATCH = 8
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One object of a scene: a shape or a number."""

    kind: str  # a word of SHAPES, or NUMBER
    color: str
    value: str  # the digits of a number, "" for a shape
    size: int  # pixels: the side of a shape, the height of a number
    box: Box
    cells: tuple[int, int, int, int]  # first row, first column, last row, last column

    @property
    def center(self) -> tuple[float, float]:
        """Horizontal and vertical centre in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class PatchLabels:
    """What covers each 8 x 8 patch, for the dense auxiliary loss of host training; -100 where it is a draw."""

    kind: npt.NDArray[np.int64]  # 0 background, 1..8 shapes, 9..18 digits, 19..26 bystanders
    color: npt.NDArray[np.int64]  # 0 background, 1..8, 9..16 of bystanders
    place: npt.NDArray[np.int64]  # 0 no digit, 1..3 the digit's place in its number
    middle: npt.NDArray[np.int64]  # 1 where a thing has its centre
    size: npt.NDArray[np.int64]  # 0 background, 1..6 height class of the thing
    shade: npt.NDArray[np.int64]  # 0..7 brightness of background, -100 under a thing


@dataclass(frozen=True)
class Scene:
    """A picture with everything that is known about it."""

    image: npt.NDArray[np.uint8]  # [H, W, 3]
    things: tuple[Thing, ...]
    labels: PatchLabels = field(repr=False)


def make_scene(
    split: Split,
    seed: int,
    index: int,
    *,
    cells: int = 6,
    things: tuple[int, int] = (10, 16),
    numbers: float = 0.4,
    lengths: tuple[float, float, float] = (0.3, 0.35, 0.35),
    bystanders: tuple[float, float] = (0.6, 1.0),
    crowds: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> Scene:
    """Draw scene `index` of a split.

    Args:
        split: whose photographs and digits are used.
        seed: of the scenes.
        index: of the scene.
        cells: the picture has `cells` x `cells` cells.
        things: least and largest number of objects, as long as there is room.
        numbers: share of the objects that are numbers.
        lengths: shares of the numbers of one, two and three digits.
        bystanders: least and largest share of the free cells that hold bystanders.
        crowds: shares of those cells with one, two and four bystanders; one alone may be larger.
    """
    random = np.random.default_rng([SPLITS.index(split), seed, index, cells])
    canvas = _background(random, split, cells * CELL)
    _clutter(random, canvas, split, count=cells)
    free = np.ones((cells, cells), dtype=bool)
    side = cells * CELL // PATCH
    best = np.zeros((side, side), dtype=np.float32)
    labels = PatchLabels(*(np.zeros((side, side), dtype=np.int64) for _ in range(6)))
    placed: list[Thing] = []
    for _ in range(int(random.integers(things[0], things[1] + 1))):
        thing = _place(random, canvas, free, split, labels, best, numbers=numbers, lengths=lengths)
        if thing is not None:
            placed.append(thing)
    _stand_by(random, canvas, free, labels, best, share=random.uniform(*bystanders), crowds=crowds)
    canvas += random.normal(0, 0.02, canvas.shape).astype(np.float32)
    _leave_draws_open(labels, best)
    image = (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8)
    bright = image.reshape(side, PATCH, side, PATCH, 3).mean(axis=(1, 3, 4))
    labels.shade[:] = np.where(best > 0, -100, bright.astype(np.int64) * SHADES // 256)
    return Scene(image, tuple(placed), labels)


def _background(random: np.random.Generator, split: Split, side: int) -> Array:
    canvas = _crop(random, split, side, side)
    grey = canvas.mean(axis=2, keepdims=True)
    canvas = grey + (canvas - grey) * random.uniform(0.25, 0.7)
    mean = canvas.mean()
    toned: Array = np.clip((canvas - mean) * random.uniform(0.5, 0.9) + random.uniform(0.22, 0.5), 0, 0.8)
    return toned.astype(np.float32)


def _crop(random: np.random.Generator, split: Split, height: int, width: int) -> Array:
    photograph = photographs(split)[random.integers(len(photographs(split)))]
    rows, columns = photograph.shape[:2]
    stretch = random.uniform(0.6, 1.5)
    h, w = min(rows, max(8, int(height * stretch))), min(columns, max(8, int(width * stretch)))
    top, left = random.integers(rows - h + 1), random.integers(columns - w + 1)
    part = photograph[top : top + h, left : left + w]
    if random.random() < 0.5:
        part = part[:, ::-1]
    y = np.linspace(0, h - 1, height).astype(np.int64)
    x = np.linspace(0, w - 1, width).astype(np.int64)
    return np.ascontiguousarray(part[y[:, None], x])


def _clutter(random: np.random.Generator, canvas: Array, split: Split, count: int) -> None:
    side = canvas.shape[0]
    for _ in range(int(random.integers(count // 2, count + 1))):
        height, width = random.integers(10, 40, 2)
        top, left = random.integers(0, side - height), random.integers(0, side - width)
        part = _crop(random, split, int(height), int(width))
        grey = part.mean(axis=2, keepdims=True)
        part = np.clip(grey + (part - grey) * 0.5, 0, 0.8)
        canvas[top : top + height, left : left + width] = part
    overlay = Image.fromarray((canvas * 255).astype(np.uint8))
    pen = ImageDraw.Draw(overlay)
    for _ in range(int(random.integers(count // 2, count + 1))):
        x, y = random.integers(0, side, 2)
        points = [
            (int(x + random.normal(0, 12)), int(y + random.normal(0, 12))) for _ in range(int(random.integers(3, 6)))
        ]
        shade = random.uniform(0.1, 0.7)
        tint = tuple(int(255 * np.clip(shade + random.normal(0, 0.06), 0, 1)) for _ in range(3))
        if random.random() < 0.5:
            pen.line(points, fill=tint, width=int(random.integers(1, 4)))
        else:
            pen.polygon(points, fill=tint)
    canvas[:] = np.asarray(overlay, dtype=np.float32) / 255


def _place(
    random: np.random.Generator,
    canvas: Array,
    free: npt.NDArray[np.bool_],
    split: Split,
    labels: PatchLabels,
    best: Array,
    *,
    numbers: float,
    lengths: tuple[float, float, float],
) -> Thing | None:
    kind = NUMBER if random.random() < numbers else SHAPES[random.integers(len(SHAPES))]
    color = list(COLORS)[random.integers(len(COLORS))]
    parts: list[tuple[Array, int]] = []  # ink and label class, left to right
    if kind == NUMBER:
        ink, values = digits(split)
        chosen = random.integers(len(ink), size=int(random.choice([1, 2, 3], p=lengths)))
        if len(chosen) > 1 and values[chosen[0]] == 0:
            chosen = chosen[1:] if len(chosen) == 2 else chosen[:1]
        size = int(random.integers(14, 25)) if len(chosen) == 1 else int(random.integers(15, 21))
        slants = [_slant(random) if split == "train" else np.eye(2) for _ in chosen]
        parts = [(_scaled(ink[i], size, slant), 9 + int(values[i])) for i, slant in zip(chosen, slants, strict=True)]
        value = "".join(str(values[i]) for i in chosen)
    else:
        size = int(
            random.choice(
                [random.integers(11, 16), random.integers(16, 27), random.integers(32, 53)], p=[0.5, 0.35, 0.15]
            )
        )
        parts = [(shape_mask(kind, size), 1 + SHAPES.index(kind))]
        value = ""
    height = max(mask.shape[0] for mask, _ in parts)
    width = sum(mask.shape[1] for mask, _ in parts) + (len(parts) - 1)
    rows, columns = math.ceil((height + 2) / CELL), math.ceil((width + 2) / CELL)
    spots = np.argwhere(
        np.lib.stride_tricks.sliding_window_view(free, (rows, columns)).all(axis=(2, 3))
        if free.shape[0] >= rows and free.shape[1] >= columns
        else np.zeros((0, 0), dtype=bool)
    )
    if not len(spots):
        return None
    row, column = (int(i) for i in spots[random.integers(len(spots))])
    free[row : row + rows, column : column + columns] = False
    top = row * CELL + int(random.integers(1, rows * CELL - height))
    left = column * CELL + int(random.integers(1, columns * CELL - width))
    paint = np.clip(np.array(COLORS[color]) + random.normal(0, 0.03, 3), 0, 1).astype(np.float32)
    x = left
    for place, (mask, label) in enumerate(parts, start=1):
        h, w = mask.shape
        region = canvas[top : top + h, x : x + w]
        region += mask[..., None] * (paint - region)
        _cover(labels, best, mask, top, x, label, 1 + list(COLORS).index(color), place * (kind == NUMBER), size)
        x += w + 1
    labels.middle[(top + height // 2) // PATCH, (left + width // 2) // PATCH] = 1
    box = (left, top, left + width, top + height)
    return Thing(kind, color, value, size, box, (row, column, row + rows - 1, column + columns - 1))


def _stand_by(
    random: np.random.Generator,
    canvas: Array,
    free: npt.NDArray[np.bool_],
    labels: PatchLabels,
    best: Array,
    *,
    share: float,
    crowds: tuple[float, float, float],
) -> None:
    """Fill a share of the free cells with one bystander each, or with two or four small ones in their quarters."""
    spots = np.argwhere(free)
    chosen = spots[random.permutation(len(spots))[: round(share * len(spots))]]
    for row, column in chosen * CELL:
        quarters = (((0, 0),), ((0, 0), (1, 1)), ((0, 0), (0, 1), (1, 0), (1, 1)))[random.choice(3, p=crowds)]
        alone = len(quarters) == 1
        for down, right in quarters:
            kind, color = int(random.integers(len(BYSTANDERS))), int(random.integers(len(BYSTANDER_COLORS)))
            size = int(random.integers(11, 25) if alone else random.integers(9, 14))
            mask = shape_mask(BYSTANDERS[kind], size)
            room = (CELL if alone else CELL // 2) - size
            top = int(row) + down * CELL // 2 + int(random.integers(1, room))
            left = int(column) + right * CELL // 2 + int(random.integers(1, room))
            paint = np.array(list(BYSTANDER_COLORS.values())[color]) + random.normal(0, 0.03, 3)
            region = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
            region += mask[..., None] * (np.clip(paint, 0, 1).astype(np.float32) - region)
            labels.middle[(top + mask.shape[0] // 2) // PATCH, (left + mask.shape[1] // 2) // PATCH] = 1
            label = 9 + 10 + kind
            _cover(labels, best, mask, top, left, label, 1 + len(COLORS) + color, 0, size)


def _slant(random: np.random.Generator) -> npt.NDArray[np.float64]:
    """A small turn, shear and stretch: training reads 1,200 digits, and other hands must not surprise it."""
    turn, shear = random.normal(0, 0.12), random.normal(0, 0.12)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    slant: npt.NDArray[np.float64] = (
        rotation @ np.array([[1.0, 0.0], [shear, 1.0]]) @ np.diag(random.uniform(0.9, 1.1, 2))
    )
    return slant


def _scaled(ink: Array, size: int, slant: npt.NDArray[np.float64]) -> Array:
    """An 8 x 8 digit at `size` pixels height, bilinear, its two empty border columns cut."""
    axis = (np.arange(size) + 0.5) * 8 / size - 4
    places = np.einsum("ij,jrc->irc", slant, np.stack(np.meshgrid(axis, axis, indexing="ij"))) + 3.5
    scaled: Array = map_coordinates(ink, places, order=1, mode="nearest").astype(np.float32)
    margin = size // 8
    return scaled[:, margin : size - margin]


@cache
def shape_mask(kind: str, size: int) -> Array:
    """Anti-aliased mask in [0, 1] of a shape, `size` pixels wide."""
    n = size * _SUPERSAMPLING
    axis = (np.arange(n) + 0.5) / n * 2 - 1
    x, y = np.meshgrid(axis, axis)
    radius = np.hypot(x, y)
    if kind == "disc":
        inside = radius < 1
    elif kind == "square":
        inside = np.maximum(abs(x), abs(y)) < 0.9
    elif kind == "triangle":
        inside = abs(x) < (y + 1) / 2
    elif kind == "plus":
        inside = np.minimum(abs(x), abs(y)) < 0.3
    elif kind == "cross":
        inside = np.minimum(abs(x - y), abs(x + y)) < 0.42
    elif kind == "ring":
        inside = (radius < 1) & (radius > 0.55)
    elif kind == "star":
        angle = np.mod(np.arctan2(x, -y), 2 * np.pi / 5)
        angle = np.minimum(angle, 2 * np.pi / 5 - angle)
        outer, inner, step = 1.0, 0.45, np.pi / 5
        inside = radius * (
            np.sin(angle) * (outer - inner * np.cos(step)) + np.cos(angle) * inner * np.sin(step)
        ) < outer * inner * np.sin(step)
    elif kind == "bar":
        inside = abs(y) < 0.34
    elif kind == "moon":
        inside = (radius < 1) & (np.hypot(x - 0.5, y) > 0.75)
    elif kind == "heart":
        u, v = 1.2 * x, 0.15 - 1.2 * y
        inside = (u**2 + v**2 - 1) ** 3 < u**2 * v**3
    elif kind == "arrow":
        inside = ((abs(y) < 0.28) & (x < 0)) | ((x >= 0) & (abs(y) < 1 - x))
    elif kind == "hourglass":
        inside = abs(x) < abs(y)
    elif kind == "tee":
        inside = (y < -0.4) | (abs(x) < 0.3)
    elif kind == "ell":
        inside = (x < -0.4) | (y > 0.4)
    elif kind == "dome":
        inside = (np.hypot(x, (y + 1) / 2 - 1) < 1) & (y < 0.6)
    elif kind == "stripes":
        inside = np.mod((y + 1) * 2.5, 2) < 1
    else:
        raise ValueError(f"shape is {kind!r}, expected one of {(*SHAPES, *BYSTANDERS)}")
    mask: Array = inside.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING).mean(axis=(1, 3)).astype(np.float32)
    return mask[mask.any(axis=1)]


def _cover(
    labels: PatchLabels,
    best: Array,
    mask: Array,
    top: int,
    left: int,
    kind: int,
    color: int,
    place: int,
    size: int,
) -> None:
    """Give each patch to the part that covers most of it."""
    first_row, first_column = top // PATCH, left // PATCH
    rows = (top + mask.shape[0] - 1) // PATCH - first_row + 1
    columns = (left + mask.shape[1] - 1) // PATCH - first_column + 1
    padded = np.zeros((rows * PATCH, columns * PATCH), dtype=np.float32)
    padded[top % PATCH : top % PATCH + mask.shape[0], left % PATCH : left % PATCH + mask.shape[1]] = mask
    share = padded.reshape(rows, PATCH, columns, PATCH).mean(axis=(1, 3))
    at = (slice(first_row, first_row + rows), slice(first_column, first_column + columns))
    wins = share > best[at]
    best[at] = np.where(wins, share, best[at])
    class_of_size = size_class(size)
    for target, label in (
        (labels.kind, kind),
        (labels.color, color),
        (labels.place, place),
        (labels.size, class_of_size),
    ):
        target[at] = np.where(wins, label, target[at])


def plural(kind: str) -> str:
    """The word for several of a kind."""
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def size_class(size: int) -> int:
    """1..6 by size in pixels."""
    return 1 + int(np.searchsorted((14, 18, 24, 32, 42), size, side="right"))


def _leave_draws_open(labels: PatchLabels, best: Array) -> None:
    faint = (best > 0) & (best < 0.12)
    for target in (labels.kind, labels.color, labels.place, labels.size):
        target[faint] = -100
