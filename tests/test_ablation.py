"""Ablations: what is missing runs, what is there is left alone, and every change has its row."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import crtc.ablation
from crtc.ablation import STORED, ablate, read, stacked
from crtc.dtypes import fast_dtype
from crtc.evaluation import weights_digest
from crtc.hosts.embedded import load_host

RESULTS = Path(__file__).parents[1] / "results" / "ablation"
DESIGN = {"hidden": 8, "channels": 2, "metric": 4, "degree": 3, "reaches": [1]}
BASE: dict[str, Any] = {
    "about": "as it is",
    "every": 2,
    "evaluate": {"pictures": 2, "questions": 2, "counts": [32, 8]},
    "model": {
        "steps": 2,
        "pictures": 1,
        "questions": 2,
        "counts": [8],
        "calibration_pictures": 1,
        "design": DESIGN,
    },
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {
        "base": BASE,
        "one_step": {"about": "1 step", "model": {"design": {"steps": 1}}},
        "no_merge": {"about": "no content", "use": {"merge": False}},
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return {name: tmp_path / f"{name}.yaml" for name in contents}


def fail(*args: Any, **kwargs: Any) -> Path:
    raise AssertionError("a scorer was trained again")


def refuse(name: str) -> float:
    raise AssertionError(f"JSON holds {name}")


def test_two_files_of_one_name_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    other = shutil.copy(files["one_step"], tmp_path / "more")
    with pytest.raises(ValueError, match=r"ablations are named \['base', 'one_step', 'one_step'\]"):
        ablate(files["base"], [files["one_step"], other], tmp_path / "runs")


def test_counts_make_the_columns(files: dict[str, Path], tmp_path: Path) -> None:
    files["one_step"].write_text(yaml.safe_dump({"evaluate": {"counts": [16]}}))
    with pytest.raises(ValueError, match=r"counts are {'base': \(32, 8\), 'one_step': \(16,\)}, expected the same"):
        ablate(files["base"], [files["one_step"]], tmp_path / "runs")


def table_rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_runs_what_is_missing_alone(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs"
    fits: list[int] = []
    fit = crtc.ablation.fit_scorer

    def counting(*args: Any, **kwargs: Any) -> Path:
        fits.append(1)
        return fit(*args, **kwargs)

    monkeypatch.setattr(crtc.ablation, "fit_scorer", counting)
    changes = [files["one_step"], files["no_merge"]]
    table = ablate(files["base"], [files["base"], *changes], folder)
    assert len(fits) == 2  # what is used otherwise alone shares the scorer of the base
    rows = table_rows(table)
    assert rows[0] == ["change", "seeds", "aware 32", "aware 8", "KL aware", "blind 32", "blind 8", "KL blind"]
    assert [row[:2] for row in rows[2:]] == [["as it is", "1"], ["1 step", "1"], ["no content", "1"]]
    assert all(len(row) == 8 for row in rows)
    assert (folder / "table.md").read_text() == table
    for name in ("base", "one_step", "no_merge"):
        content = json.loads((folder / f"{name}-seed0" / "ablation.json").read_text(), parse_constant=refuse)
        assert content["seed"] == 0 and content["plan"]["model"]["steps"] == 2
        assert {row["method"] for row in content["summary"]["rows"]} >= {
            "reinforced_scorer aware",
            "reinforced_scorer blind",
        }
        assert len(list((folder / f"{name}-seed0").glob("wandb/offline-run-*"))) == 1
        assert {file.name for file in (folder / f"{name}-seed0").glob("*.png")} >= {"curves.png"}
    monkeypatch.setattr(crtc.ablation, "fit_scorer", fail)
    monkeypatch.setattr(crtc.ablation, "Evaluation", fail)
    assert ablate(files["base"], changes, folder) == table
    found = content["summary"]["config"]["dtype"]
    assert found == str(fast_dtype("cpu"))
    monkeypatch.setattr(crtc.dtypes, "fast_dtype", lambda device: torch.float16)  # results of any machine are taken
    assert ablate(files["base"], changes, folder) == ablate(files["base"], changes, folder, dtype=found[6:]) == table
    with pytest.raises(AssertionError):
        ablate(files["base"], changes, folder, dtype="float16")
    monkeypatch.setattr(crtc.ablation, "__version__", "0.0.0")
    with pytest.raises(AssertionError):
        ablate(files["base"], changes, folder)


def test_results_that_ship_are_those_of_the_host_that_ships() -> None:
    """Whatever the machine computes in, they are not made again."""
    stored = json.loads((RESULTS / "base-seed0" / "ablation.json").read_text())
    assert stored["weights"] == weights_digest(load_host("embedded", dtype=STORED)[0])


def test_another_plan_runs_anew(
    files: dict[str, Path], tmp_path: Path, small_host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host that is never right: nothing can be divided by its answers, and the table is there all the same."""
    folder = tmp_path / "runs"
    files["base"].write_text(yaml.safe_dump({**BASE, "seeds": 2}))
    assert table_rows(ablate(files["base"], [], folder, host=str(small_host)))[2][:2] == ["as it is", "2"]
    for seed in (0, 1):
        json.loads((folder / f"base-seed{seed}" / "ablation.json").read_text(), parse_constant=refuse)
    fewer = {**BASE, "evaluate": {"pictures": 1, "questions": 1, "counts": [4]}}
    files["base"].write_text(yaml.safe_dump(fewer))
    monkeypatch.setattr(crtc.ablation, "fit_scorer", fail)  # trained as before
    rows = table_rows(ablate(files["base"], [], folder, host=str(small_host)))
    assert rows[0] == ["change", "seeds", "aware 4", "KL aware", "blind 4", "KL blind"]
    assert rows[2][:2] == ["as it is", "1"]  # the other seed was of another plan


def test_stacked() -> None:
    base = {"about": "base", "model": {"steps": 3, "design": {"hidden": 8, "steps": 3}}}
    change = {"about": "change", "model": {"design": {"steps": 1}}, "mass": False}
    assert stacked(base, change) == {
        "about": "change",
        "model": {"steps": 3, "design": {"hidden": 8, "steps": 1}},
        "mass": False,
    }
    assert base["model"]["design"]["steps"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("modle: {steps: 1}", "modle"),
        ("evaluate: {counts: 64}", "counts is 64, expected a list of positive whole numbers"),
        ("evaluate: {counts: []}", r"counts is \[\], expected a list"),
        ("evaluate: {pictures: 0}", "pictures is 0, expected a positive whole number"),
        ("seeds: three", "seeds is 'three', expected a positive whole number"),
        ("model: {stepz: 1}", "stepz"),
        ("model: {design: {depth: 1}}", "depth"),
        ("use: {marge: false}", "marge"),
        ("use: {graph: false}", r"holds \['graph'\], expected some of degree, merge, prior, rewired, selector, steps"),
        ("evaluate: {picture: 1}", "picture"),
        ("- model", "list"),
        ("model", "str"),
        ("model: 3", "model"),
        ("{", "no readable YAML"),
    ],
)
def test_mistakes_are_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "change.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"change\.yaml.*{message}"):
        read(file)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        read(tmp_path / "nowhere.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# as it is\n")
    assert read(tmp_path / "empty.yaml") == {}
