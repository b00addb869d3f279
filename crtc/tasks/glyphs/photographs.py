"""Real photographs for backgrounds and real handwritten digits for reading, both from installed packages.

The photographs are the ones bundled with scikit-image and scikit-learn, the digits are scikit-learn's copy of the UCI
optical recognition set. Each split owns its photographs and its digits: nothing seen in training returns in a test.
"""

from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from skimage import data as skimage_data
from skimage.transform import resize
from sklearn.datasets import load_digits, load_sample_image

Split = Literal["train", "calibration", "test"]
Array = npt.NDArray[np.float32]

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut", "chelsea", "immunohistochemistry", "retina", "brick", "grass", "coins", "cell", "page", "moon",
        "china.jpg",
    ),
    "calibration": ("rocket", "gravel"),
    "test": ("coffee", "camera", "hubble_deep_field", "text", "flower.jpg"),
}  # fmt: skip
DEALT_FROM = 1200
DEALT: tuple[Split, ...] = ("test", "test", "calibration", "train", "train", "train")
"""Who gets the digits from number `DEALT_FROM` on, in turns; those before are of training. They come in the order of
their writers: cut in one piece, the test would ask above all how other people write, which no compression changes.
"""
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")

_SHORT_SIDE = 300


@cache
def photographs(split: Split) -> tuple[Array, ...]:
    """The photographs of a split, RGB in [0, 1], shortest side 300 pixels."""
    return tuple(_photograph(name) for name in PHOTOGRAPHS[split])


def _photograph(name: str) -> Array:
    image = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage_data, name)()
    image = np.asarray(image)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    scale = _SHORT_SIDE / min(image.shape[:2])
    height, width = (round(side * scale) for side in image.shape[:2])
    resized = resize(image[..., :3], (height, width), anti_aliasing=True)  # type: ignore[no-untyped-call]
    return np.asarray(resized, dtype=np.float32)


def digit_numbers(split: Split) -> list[int]:
    """Which of scikit-learn's 1,797 digits are of a split."""
    dealt = [number for number in range(DEALT_FROM, 1797) if DEALT[number % len(DEALT)] == split]
    return [*range(DEALT_FROM), *dealt] if split == "train" else dealt


@cache
def digits(split: Split) -> tuple[Array, npt.NDArray[np.int64]]:
    """Handwritten digits of a split: ink in [0, 1] of shape [n, 8, 8], and their values [n]."""
    source = load_digits()
    chosen = digit_numbers(split)
    ink = np.clip(source.images[chosen] / 16.0 * 1.5, 0, 1).astype(np.float32)
    return ink, source.target[chosen].astype(np.int64)
