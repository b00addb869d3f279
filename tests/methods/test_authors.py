"""The tool that runs the code of methods' authors, without any of it: on source that is made up here."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.making import make_golden
from tests.methods.authors.__main__ import GOLDEN, agree, recorded
from tests.methods.authors.inside import INSIDE, OrderedSet
from tests.methods.authors.runs import RUNS, Answer, Batch
from tests.methods.authors.source import Clones, Source

TEXT = """
import no_such_package

def double(x):
    return factor * x

class Tower:
    def least(self, x):
        return x.min()

    def forward(self, images):
        if images is None:
            rows = None
        else:
            rows = self.model(images)
            rows = rows[rows < 24]
            rows[0] = -1
            noise, kept = self.noise(), double(rows)
            kept += 24
            out = kept.sum()
        return out
"""


def test_a_definition_runs_among_stand_ins() -> None:
    made = Source(TEXT, "made.py").define("double", "Tower.least", factor=3)
    assert made["double"](2) == 6
    assert made["least"](None, torch.tensor([2, 1])) == 1
    with pytest.raises(ValueError, match=r"made.py defines no Tower.most"):
        Source(TEXT, "made.py").define("Tower.most")


def test_a_span_is_a_function_of_what_it_needs() -> None:
    source = Source(TEXT, "made.py")
    around = source.define("double", factor=3)
    rows = torch.tensor([5, 30, 7, 9])
    span = source.span("Tower.forward", "noise", "kept", given=("self", "rows"), wanted=("kept",), **around)
    with pytest.raises(AttributeError, match="noise"):
        span(None, rows)
    names = ("rows", "kept")
    part = source.span("Tower.forward", "rows", "kept", given=("self", "images"), wanted=names, **around)
    tower = SimpleNamespace(model=lambda images: images + 1, noise=lambda: 0)
    assert [one.tolist() for one in part(tower, rows)] == [[-1, 8, 10], [21, 48, 54]]
    with pytest.raises(ValueError, match="no block of forward assigns kept and then rows"):
        source.span("Tower.forward", "kept", "rows", given=(), wanted=())


def test_whole_numbers_can_be_others() -> None:
    source = Source("def f(x):\n    y = x[:24]\n    y[0] = 24.5\n    z = y + 24\n    return z", "made.py")
    span = source.span("f", "y", "z", given=("x",), wanted=("y", "z"), numbers={24: 2})
    y, z = span(torch.arange(4.0))
    assert y.tolist() == [24.5, 1.0] and z.tolist() == [26.5, 3.0]
    left_out = source.span("f", "y", "z", given=("x", "y"), wanted=("z",), only=("z",))
    assert left_out(None, 1) == (25,)


@pytest.mark.parametrize("name", ["some+one", "some/one"])
def test_files_are_read_at_a_commit(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    (home / "deep").mkdir(parents=True)
    (home / "deep" / "a.py").write_text("def a(): return b")
    (home / "b.py").write_text("b = 1\ndef c(): return b")
    assert Clones(tmp_path).read("some/one", "0" * 40, "deep/a.py").define("a", b=2)["a"]() == 2

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        return subprocess.run(["git", "-C", str(home), *who, *arguments], capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    commit = git("rev-parse", "HEAD")
    (home / "b.py").write_text("")
    source = Clones(tmp_path).read("some/one", commit, "deep/a.py")
    assert source.beside("b.py").define("c", b=3)["c"]() == 3
    with pytest.raises(ValueError, match=r"has no c\.py of"):
        source.beside("c.py")
    with pytest.raises(ValueError, match=r"other\+one, a clone of https://github.com/other/one"):
        Clones(tmp_path).read("other/one", commit, "b.py")


def test_every_golden_file_has_a_run() -> None:
    files = {file.stem for file in GOLDEN.glob("*.json")}
    assert files == RUNS.keys() | INSIDE.keys() and not RUNS.keys() & INSIDE.keys()


def test_an_ordered_set_keeps_the_order() -> None:
    members = OrderedSet([5, 1, 3, 1])
    members.update([4, 5])
    members.difference_update([1, 7])
    assert list(members) == [5, 3, 4] and list(members - OrderedSet([3])) == [5, 4]


def test_pictures_are_laid_out_for_the_authors() -> None:
    tokens = make_golden(0)
    batch = Batch.of(tokens)
    assert batch.size == 144 and len(batch.alone()) == 1
    assert torch.equal(batch.x[0], tokens.x[:144]) and torch.equal(batch.text[0], tokens.x[144:])
    assert torch.equal(batch.alone()[0].received, batch.received)


def test_what_differs_is_seen() -> None:
    case = json.loads((GOLDEN / "dbdpc.json").read_text())["cases"][0]
    rows = torch.tensor(case["rows"])
    answer = Answer(case["kept"], rows[torch.randperm(len(rows))], case["sizes"])
    assert agree(recorded(answer, case), case)
    assert not agree(recorded(Answer(case["kept"][1:], rows, case["sizes"]), case), case)
    assert not agree(recorded(Answer(case["kept"], rows + 1e-3, case["sizes"]), case), case)
