"""The README: its commands run, and its figures are those of the committed results."""

import re
import shlex
from pathlib import Path

import pytest

from crtc.cli import main
from crtc.readme import DOCUMENTS, ROOT, blocks, filled

README = ROOT / "README.md"
SMALL = {
    "fit": [
        "--model.steps=2",
        "--model.pictures=1",
        "--model.questions=2",
        "--model.calibration_pictures=1",
        "--every=1",
    ],
    "evaluate": ["--pictures=1", "--questions=2"],
}
"""What makes the long commands short; everything else runs as it is written."""


def commands() -> list[str]:
    """Lines of the README's shell blocks that call crtc."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("crtc ")]


def test_there_are_commands() -> None:
    assert {shlex.split(line)[1] for line in commands()} >= {"fit", "evaluate", "ablate", "compress", "show"}


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one folder, since some read what others wrote."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    base = tmp_path / "base.yaml"
    base.write_text(
        "every: 1\nevaluate: {pictures: 1, questions: 2, counts: [16]}\n"
        "model: {steps: 1, pictures: 1, questions: 2, calibration_pictures: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    for line in commands():
        if "llava-hf" in line:
            continue  # needs the hub
        words = shlex.split(line)[1:]
        extra = {"ablate": ["--base", str(base)]}.get(words[0], SMALL.get(words[0], []))
        main([*words, *extra])


def test_hub_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that need the hub fail for want of a model or a file, not of an option."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for line in commands():
        if "llava-hf" in line:
            with pytest.raises(SystemExit) as stopped:
                main(shlex.split(line)[1:])
            assert stopped.value.code == 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=["README", "model card", "reinforcement"])
def test_figures_are_generated(document: Path) -> None:
    text = document.read_text()
    assert set(re.findall(r"<!-- (\w+) -->", text)) <= blocks().keys(), "a block has lost its results"
    assert filled(text) == text, "run `python -m crtc.readme`"


def test_python_block_compiles() -> None:
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL):
        compile(block, "README.md", "exec")
