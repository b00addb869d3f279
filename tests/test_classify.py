"""`crtc classify` from end to end, and its mistakes."""

import json
from pathlib import Path

import pytest

from crtc.cli import main
from tests.classifiers import make_model, write_folder


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    make_model("DeiTForImageClassification").save_pretrained(tmp_path / "model")
    write_folder(tmp_path / "photos")
    return [f"--model={tmp_path / 'model'}", f"--data={tmp_path / 'photos'}", f"--output={tmp_path / 'results'}"]


def test_classify(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = "--methods=[random, uniform_grid, tome, vision_zip, fastv]"
    main(["classify", *folders, "--layers=[1, 2]", "--counts=[8, 4]", methods, "--mass=both", "--batch=4"])
    said = capsys.readouterr().out
    assert "| vision_zip | kept |" in said and "fastv was skipped" in said
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert len(results["rows"]) == 4 * 2 * 2 * 2 and results["images"] == 10
    assert {"table.md", "curves.png", "images.npz"} <= {file.name for file in (tmp_path / "results").iterdir()}
    main(["classify", *folders, "--images=4", "--attention=eager", "--methods=[random]"])
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["images"] == 4 and {row["mass"] for row in results["rows"]} == {True}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers=[4]"], "layer is 4, expected 1 to 3"),
        (["--methods=[kmeens]"], "no method is named 'kmeens'"),
        (["--methods=[]"], "methods is empty"),
        (["--data=nowhere"], "is no folder of class folders and no .npz file"),
        (["--model=/nowhere/at/all"], "cannot be loaded as an image classifier"),
    ],
)
def test_mistakes(arguments: list[str], message: str, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["classify", *folders, "--methods=[random]", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]
