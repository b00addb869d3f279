"""What a run on W&B holds, read back from the file that it leaves without an account."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from crtc.tracking import log_evaluation, log_folder, mode, run_id, settings, track

HEADER, BLOCK = 7, 32768


def written(folder: Path, *, seconds: float = 60) -> list[Record]:
    """All records of the only run under a folder, once the last of them, its exit, stands in the file: W&B writes it
    from a process of its own, which on a busy machine is behind.
    """
    end = time.monotonic() + seconds
    while True:
        found = list(records(folder))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < end, f"no exit among {[record.WhichOneof('record_type') for record in found]}"
        time.sleep(0.2)


def records(folder: Path) -> Iterator[Record]:
    """The records of the only run under a folder: blocks of chunks, each with checksum, length and kind."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, place, parts = file.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def values(items: Any) -> dict[str, Any]:
    """The entries of a record by their keys, those of a nested value together."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, name = item.nested_key or [item.key]
        inner = found
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[name] = json.loads(item.value_json)
    return found


def row(method: str, mass: bool, count: int, relative: float) -> dict[str, Any]:
    measures = ("accuracy", "agreement", "kl_mean", "kl_p90", "harmful_flips", "lucky_flips")
    more = ("evidence_recall", "planning_ms", "layer_equivalent")
    return {
        "method": method,
        "mass": mass,
        "count": count,
        "question_aware": False,
        **{name: float(place) for place, name in enumerate((*measures, *more))},
        "families": {"color": {"accuracy": relative / 2, "questions": 3}},
        "relative": {"value": relative, "low": relative - 1, "high": relative + 1},
    }


DIFFERENCE = {
    "learned": "reinforced_scorer",
    "against": "kmeans",
    "count": 16,
    "difference": {"value": 5.5, "low": 4.0, "high": 7.0},
}


def test_a_run_without_an_account_keeps_everything(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "curves.png")
    rows = [row("kmeans", True, 16, 81.5), row("kmeans", False, 16, 70.25), row("random", True, 64, 40.0)]
    rows.append({**row("all tokens", False, 0, 100.0), "question_aware": None})
    (tmp_path / "scorer").mkdir()
    (tmp_path / "scorer" / "config.json").write_text("{}")
    with track("evaluate", {"task": "made-up", "counts": [64, 16], "machine": {"device": "abacus"}}, tmp_path) as run:
        log_evaluation(run, {"rows": rows, "differences": [DIFFERENCE]}, {"curves": tmp_path / "curves.png"})
        log_folder(run, tmp_path / "scorer", "scorer", "scorer")
    found = written(tmp_path)
    (started,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    config = values(started.config.update)
    assert started.project == "crtc" and started.job_type == "evaluate"
    assert config["task"] == "made-up" and config["counts"] == [64, 16] and config["machine"] == {"device": "abacus"}
    logged: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for record in found:
        logged |= values(record.history.item) if record.HasField("history") else {}
        kept |= values(record.summary.update) if record.HasField("summary") else {}

    def stored(name: str) -> dict[str, Any]:
        (file,) = tmp_path.glob(f"wandb/offline-run-*/files/{logged[name]['path']}")
        return dict(json.loads(file.read_text()))

    content = stored("retention")
    assert logged["retention"]["nrows"] == 4 and content["columns"][:3] == ["method", "mass", "count"]
    assert content["columns"][-3:] == ["relative", "low", "high"]
    assert content["data"][0][:3] == ["kmeans", True, 16] and content["data"][0][-3:] == [81.5, 80.5, 82.5]
    assert stored("families")["data"][1] == ["kmeans", False, 16, "color", 3, 35.125]
    assert stored("differences")["data"] == [["reinforced_scorer", "kmeans", 16, 5.5, 4.0, 7.0]]
    (drawn,) = tmp_path.glob(f"wandb/offline-run-*/files/{logged['curves']['path']}")
    assert (logged["curves"]["width"], logged["curves"]["height"]) == Image.open(drawn).size == (20, 10)
    assert kept["relative/kmeans/mass/16"] == 81.5 and kept["relative/kmeans/plain/16"] == 70.25
    assert kept["relative/random/mass/64"] == 40.0


def test_a_run_ends_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), track("evaluate", {}, tmp_path / "new") as run:
        raise KeyError("user")
    assert wandb.run is None and run is not None
    assert len(list((tmp_path / "new").glob("wandb/offline-run-*"))) == 1


@pytest.mark.parametrize("chosen", ["offline", "disabled", "online"])
def test_mode_is_what_the_user_chose(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", chosen)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert mode() == chosen


def test_the_project_is_what_the_user_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings("fit", tmp_path / "new")["project"] == "crtc"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.chdir(tmp_path)
    found = settings("fit", "new")
    assert found["project"] == "mine" and found["dir"] == str(tmp_path / "new")


def test_a_training_goes_on_under_its_id(tmp_path: Path) -> None:
    first = run_id(tmp_path, anew=True)
    assert run_id(tmp_path, anew=False) == first
    assert run_id(tmp_path, anew=True) != first


def test_mode_without_a_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert mode() == "online"


def test_disabled_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with track("evaluate", {}, tmp_path) as run:
        log_evaluation(run, {"rows": [row("kmeans", True, 16, 81.5)], "differences": []}, {})
    assert not list(tmp_path.glob("wandb/*run-*"))
