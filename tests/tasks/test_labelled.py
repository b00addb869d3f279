"""Photographs with classes, from folders and files, and what is wrong with others."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crtc.tasks.labelled import Labelled, labelled
from tests.classifiers import NAMES, make_photographs, write_folder

LABEL2ID = {name: 10 - number for number, name in enumerate(NAMES)}


def arrays(number: int = 4) -> dict[str, Any]:
    encoded = []
    for image in make_photographs(number):
        buffer = io.BytesIO()
        image.save(buffer, "png")
        encoded.append(buffer.getvalue())
    ends = np.cumsum([0, *map(len, encoded)])
    labels = np.arange(number, dtype=np.int16) % 3
    return {"bytes": np.frombuffer(b"".join(encoded), np.uint8), "offsets": ends, "labels": labels}


def archive(path: Path, **changes: Any) -> Path:
    stored = {**arrays(), **changes}
    np.savez(path, **{name: value for name, value in stored.items() if value is not None})
    return path


def pictures(data: Labelled) -> list[bytes]:
    return [data.image(i).tobytes() for i in range(len(data))]


def test_a_folder_numbers_its_classes_by_the_model(tmp_path: Path) -> None:
    data = labelled(write_folder(tmp_path / "photos"), LABEL2ID, 11)
    assert data.name == "photos" and data.labels.tolist() == [10, 10, 9, 9, 8, 8, 7, 7, 6, 6]
    assert pictures(data) == [image.tobytes() for image in make_photographs(10)]


def test_a_folder_of_other_names_is_numbered_in_order(tmp_path: Path) -> None:
    data = labelled(write_folder(tmp_path, ("n3", "n1", "n2")), LABEL2ID, 3)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_an_archive(tmp_path: Path) -> None:
    data = labelled(archive(tmp_path / "some.npz"), LABEL2ID, 3)
    assert data.name == "some" and data.labels.tolist() == [0, 1, 2, 0]
    assert pictures(data) == [image.tobytes() for image in make_photographs(4)]
    assert data.content == labelled(archive(tmp_path / "same.npz"), LABEL2ID, 3).content
    assert data.content != labelled(archive(tmp_path / "b.npz", labels=np.zeros(4, int)), LABEL2ID, 3).content


ARCHIVES: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, "expected arrays bytes, offsets and labels"),
    "label out of range": ({"labels": np.array([0, 1, 3, 0])}, "label of image 2 of .* is 3, expected 0 to 2"),
    "negative label": ({"labels": np.array([0, -1, 1, 0])}, "label of image 1 of .* is -1"),
    "real labels": ({"labels": np.zeros(4)}, "labels of .* are float64"),
    "too few labels": ({"labels": np.zeros(3, int)}, "3 labels and 5 offsets"),
    "no images": ({"labels": np.zeros(0, int), "offsets": np.zeros(1, int)}, "at least one label"),
    "wrong bytes": ({"bytes": np.zeros(9)}, "bytes of .* are float64"),
    "offsets go back": ({"offsets": np.array([0, 9, 5, 20, 30])}, "image 1 of .* goes from byte 9 to 5"),
    "offsets too far": ({"offsets": np.array([0, 9, 12, 20, 10**9])}, "image 3 of .* to 1000000000, expected"),
}


@pytest.mark.parametrize(("changes", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_mistakes_in_archives(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        labelled(archive(tmp_path / "some.npz", **changes), LABEL2ID, 3)


def without_images(folder: Path) -> None:
    (folder / "ant").mkdir()
    (folder / "ant" / "notes.txt").touch()


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda folder: None, "has no folders, expected one folder of images per class"),
    "no images": (without_images, "ant holds no images, expected files of .bmp"),
    "unknown class": (
        lambda folder: write_folder(folder, ("ant", "yak")),
        "has 2 class folders, among them 'yak', .* or one folder for each of its 11 classes",
    ),
}


@pytest.mark.parametrize(("make", "message"), FOLDERS.values(), ids=FOLDERS)
def test_mistakes_in_folders(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        labelled(tmp_path, LABEL2ID, 11)


def test_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no folder of class folders and no \.npz file"):
        labelled(tmp_path / "none", LABEL2ID, 11)
    (tmp_path / "broken.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.npz cannot be read"):
        labelled(tmp_path / "broken.npz", LABEL2ID, 11)


def test_images_that_cannot_be_decoded(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos")
    (tmp_path / "photos" / "bee" / "0.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"image .*bee/0.png cannot be read"):
        labelled(tmp_path / "photos", LABEL2ID, 11).image(2)
    stored = arrays()
    stored["bytes"] = stored["bytes"].copy()
    stored["bytes"][stored["offsets"][1] :] = 0
    with pytest.raises(ValueError, match=r"image 1 of .* cannot be read"):
        labelled(archive(tmp_path / "some.npz", **stored), LABEL2ID, 3).image(1)
