"""Photographs with the class of each: a folder of class folders, or one file of encoded images."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class Labelled:
    """Images that are decoded when they are asked for.

    Args:
        name: of the data.
        labels: class of every image.
        where: what an image is called in messages.
        encoded: the bytes of an image's file, or its path.
        content: digest of all of it.
    """

    def __init__(
        self,
        name: str,
        labels: Int[np.ndarray, " I"],
        where: Callable[[int], str],
        encoded: Callable[[int], bytes | Path],
        content: str,
    ):
        self.name, self.labels, self.content = name, labels, content
        self._where, self._encoded = where, encoded

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image in RGB.

        Raises:
            ValueError: if it cannot be decoded.
        """
        encoded = self._encoded(index)
        try:
            with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
                return image.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{self._where(index)} cannot be read: {error}, expected an encoded image") from error


def labelled(path: Path | str, label2id: Mapping[str, int], classes: int) -> Labelled:
    """The photographs of a folder or of an `.npz`.

    A folder has one folder per class, whose images may lie deeper. Classes are looked up in `label2id` where it has
    all their names; else they are numbered in the order of their names, and there must be as many as the model has.

    An `.npz` has `bytes` (encoded images behind each other, uint8), `offsets` (where each begins, and where the last
    ends) and `labels` (class of each).

    Args:
        path: of the folder or file.
        label2id: number of the model's classes by name.
        classes: of the model.

    Raises:
        ValueError: if there is no such thing, it is not as described, or a label is of no class.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, label2id, classes)
    if path.is_file() and path.suffix == ".npz":
        return _archive(path, classes)
    raise ValueError(f"data {str(path)!r} is no folder of class folders and no .npz file, expected one of them")


def _folder(path: Path, label2id: Mapping[str, int], classes: int) -> Labelled:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{path} has no folders, expected one folder of images per class")
    if all(name in label2id for name in names):
        number = {name: label2id[name] for name in names}
    elif len(names) == classes:
        number = {name: place for place, name in enumerate(names)}
    else:
        unknown = next(name for name in names if name not in label2id)
        raise ValueError(
            f"{path} has {len(names)} class folders, among them {unknown!r}, which is no class of the model; expected "
            f"names of its classes, or one folder for each of its {classes} classes"
        )
    files, labels = [], []
    for name in names:
        mine = sorted(file for file in (path / name).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not mine:
            raise ValueError(f"{path / name} holds no images, expected files of {', '.join(sorted(SUFFIXES))}")
        files += mine
        labels += [number[name]] * len(mine)
    stats = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    content = hashlib.sha256(repr([stats, labels]).encode()).hexdigest()[:16]
    return Labelled(path.name, np.array(labels), lambda i: f"image {files[i]}", lambda i: files[i], content)


def _archive(path: Path, classes: int) -> Labelled:
    try:
        with np.load(path) as file:
            stored: dict[str, npt.NDArray[Any]] = {name: file[name] for name in ("bytes", "offsets", "labels")}
    except (KeyError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}; expected arrays bytes, offsets and labels") from error
    stream, offsets, labels = stored["bytes"], stored["offsets"], stored["labels"]
    if stream.ndim != 1 or stream.dtype != np.uint8:
        raise ValueError(f"bytes of {path} are {stream.dtype} of shape {stream.shape}, expected one row of uint8")
    for name, array in (("offsets", offsets), ("labels", labels)):
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} of {path} are {array.dtype} of shape {array.shape}, expected one row of integers")
    if not len(labels) or len(offsets) != len(labels) + 1:
        raise ValueError(
            f"{path} has {len(labels)} labels and {len(offsets)} offsets, expected at least one label and one offset "
            "more than labels"
        )
    ends = offsets.astype(np.int64)
    wrong = ((np.diff(ends) <= 0) | (ends[:-1] < 0) | (ends[1:] > len(stream))).nonzero()[0]
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"image {first} of {path} goes from byte {ends[first]} to {ends[first + 1]}, expected ascending offsets "
            f"within {len(stream)} bytes"
        )
    outside = ((labels < 0) | (labels >= classes)).nonzero()[0]
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"label of image {first} of {path} is {int(labels[first])}, expected 0 to {classes - 1}, "
            f"the {classes} classes of the model"
        )
    content = hashlib.sha256(stream.tobytes() + ends.tobytes() + labels.astype(np.int64).tobytes()).hexdigest()[:16]
    return Labelled(
        path.stem,
        labels.astype(np.int64),
        lambda i: f"image {i} of {path}",
        lambda i: stream[ends[i] : ends[i + 1]].tobytes(),
        content,
    )
