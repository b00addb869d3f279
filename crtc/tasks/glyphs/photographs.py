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
DIGIT_RANGE: dict[Split, tuple[int, int]] = {"train": (0, 1200), "calibration": (1200, 1400), "test": (1400, 1797)}
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


@cache
def digits(split: Split) -> tuple[Array, npt.NDArray[np.int64]]:
    """Handwritten digits of a split: ink in [0, 1] of shape [n, 8, 8], and their values [n]."""
    low, high = DIGIT_RANGE[split]
    source = load_digits()
    ink = np.clip(source.images[low:high] / 16.0 * 1.5, 0, 1).astype(np.float32)
    return ink, source.target[low:high].astype(np.int64)
