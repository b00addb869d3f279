"""A method of one's own: a file and an export, and everything else finds it."""

import importlib
from pathlib import Path

import pytest
import torch

import crtc.methods
from crtc.cli import main
from crtc.methods import catalogue, get_method
from crtc.methods.rows import field
from tests.making import make_tokens

FILE = '''
"""Keep the tokens of largest norm."""

from crtc.methods.method import ScoreMethod


class LargestNorm(ScoreMethod):
    """The longest vectors stay."""

    source = "folklore"
    family = "saliency"

    def score(self, tokens):
        """The norm."""
        return tokens.x.norm(dim=1)
'''


def test_is_found_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "largest_norm.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("largest_norm").LargestNorm
    assert "largest_norm" not in catalogue()
    monkeypatch.setattr(crtc.methods, "LargestNorm", kind, raising=False)
    assert catalogue()["largest_norm"] is kind
    assert isinstance(get_method("LargestNorm"), kind)
    assert isinstance(field()["largest_norm"], kind)
    main(["methods"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("largest_norm"))
    assert line.split() == ["largest_norm", "saliency", "no", "-", "before", "folklore"]
    main(["methods", "--markdown"])
    assert "| largest_norm | saliency | no | - | before | folklore |" in capsys.readouterr().out
    tokens = make_tokens([[(3, 3)]])
    plan = get_method("largest_norm")(tokens, torch.tensor([2]))
    assert torch.equal(plan.kept, tokens.x[tokens.candidates].norm(dim=1).topk(2).indices.sort().values)
