"""The commands `check`, `time` and `make`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from crtc.benchmark import machine, make_pictures, race, told, written
from crtc.methods import get_method
from crtc.retention import Interval
from crtc.tokens import Groups, Plan, Tokens, apply
from tests.making import make_golden
from tests.methods.authors.inside import INSIDE
from tests.methods.authors.runs import RUNS, Answer, Batch, Run
from tests.methods.authors.source import Clones

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[3]
ALL = {**RUNS, **INSIDE}
FOR_TIMING: dict[str, dict[str, Any]] = {"dbdpc": {"cutoff": 0.585}}
"""Settings other than the file's where pictures are timed: this cutoff gives some 64 tokens of each."""
MEANING = (
    "Ours is the whole plan, with what becomes of dropped tokens; theirs is the lines that choose, and those that "
    "merge where the method merges, on the whole batch where they take one."
)
CLOSE = 1e-5
"""How far merged rows may lie apart; sums are not always in the same order."""


def golden(name: str) -> dict[str, Any]:
    """A file of `golden`."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return content


def prepared(name: str, clones: Clones, tokens: Tokens, count: int, **settings: Any) -> Run:
    """The authors' code on some pictures.

    Args:
        name: of the file in `golden`.
        clones: of the repositories.
        tokens: pictures of one size.
        count: tokens to keep of each.
        settings: of the method.
    """
    content = golden(name)
    source = clones.read(content["repository"], content["commit"], content["file"])
    return ALL[name](source, Batch.of(tokens), count, **settings)


def recorded(answer: Answer, case: dict[str, Any]) -> dict[str, Any]:
    """A case of a file with the answer in the place of its own: rows in the order of the first channel."""
    fresh = dict(case)
    for part in ("kept", "sizes"):
        if part in case:
            fresh[part] = getattr(answer, part)
    if "rows" in case and answer.rows is not None:
        rows = answer.rows[answer.rows[:, 0].argsort(), : len(case["rows"][0])]
        fresh["rows"] = [[round(value, 7) for value in row] for row in rows.tolist()]
    return fresh


def agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two cases hold the same answer."""
    plain = [{key: value for key, value in case.items() if key != "rows"} for case in (one, other)]
    return plain[0] == plain[1] and _close(*(torch.tensor(case.get("rows", [])) for case in (one, other)))


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=CLOSE, rtol=0)


def rerun(name: str, clones: Clones) -> list[dict[str, Any]]:
    """The cases of a file as the authors' code gives them now."""
    content, cases = golden(name), []
    for case in content["cases"]:
        run = prepared(name, clones, make_golden(case["seed"]), case["count"], **content["settings"])
        cases.append(recorded(run.read(run.go())[0], case))
    return cases


def check(names: Sequence[str], clones: Clones) -> int:
    """Say of every file whether the authors' code gives what it holds; how many times it does not."""
    failed = 0
    for name in names:
        content = golden(name)
        pairs = list(zip(content["cases"], rerun(name, clones), strict=True))
        wrong = [f"seed {case['seed']} at {case['count']}" for case, fresh in pairs if not agree(case, fresh)]
        failed += bool(wrong)
        verdict = f"differs: {', '.join(wrong)}" if wrong else f"the same, {len(pairs)} cases"
        print(f"{name}: {content['repository']}@{content['commit'][:7]} {verdict}")
    return failed


def make(names: Sequence[str], clones: Clones) -> None:
    """Write the files anew where the authors' code gives something else."""
    for name in names:
        content, cases = golden(name), rerun(name, clones)
        if all(agree(*pair) for pair in zip(content["cases"], cases, strict=True)):
            continue
        (GOLDEN / f"{name}.json").write_text(json.dumps({**content, "cases": cases}) + "\n")
        print(f"{name} is new")


@dataclass(frozen=True)
class Row:
    """A method beside its authors' code.

    Args:
        method: name.
        repository: of the code.
        commit: of the repository.
        ours: milliseconds for the whole batch, median.
        theirs: the same of the code.
        faster: median of theirs over that of ours.
        same: pictures of which both keep the same.
        pictures: of the batch.
    """

    method: str
    repository: str
    commit: str
    ours: float
    theirs: float
    faster: Interval
    same: int
    pictures: int


def timed(name: str, clones: Clones, tokens: Tokens, count: int, repeats: int) -> Row:
    """Time a method beside its authors' code: the same tokens, as many kept."""
    content = golden(name)
    settings = {**content["settings"], **FOR_TIMING.get(name, {})}
    run, method = prepared(name, clones, tokens, count, **settings), get_method(content["method"], **settings)
    with torch.no_grad():
        answers = run.read(run.go())
        k = torch.tensor([len(answer) for answer in answers])
        same = sum(_as(answer, own) for answer, own in zip(answers, _own(method(tokens, k), tokens), strict=True))
    mine, other, faster = race(lambda: method(tokens, k), run.go, repeats)
    return Row(content["method"], content["repository"], content["commit"], mine, other, faster, same, len(k))


def _own(plan: Plan, tokens: Tokens) -> list[Answer]:
    """Our answers."""
    rows, first, found = apply(plan, tokens.x), Groups.of(tokens).index[:, 0], []
    for number, begin in enumerate(first.tolist()):
        mine = plan.group[plan.kept] == number
        found.append(Answer((plan.kept[mine] - begin).tolist(), rows[mine]))
    return found


def _as(answer: Answer, own: Answer) -> bool:
    if answer.kept is not None:
        return answer.kept == own.kept
    assert answer.rows is not None and own.rows is not None
    return _close(*(rows[rows[:, 0].argsort()] for rows in (answer.rows, own.rows)))


def time(names: Sequence[str], clones: Clones, output: Path, repeats: int) -> None:
    """Time methods beside their authors' code on one thread; save it and say it."""
    settings = {"batch": 8, "tokens": 576, "count": 64, "channels": 192, "repeats": repeats}
    tokens, rows, before = make_pictures(8, 576, 192), list[Row](), torch.get_num_threads()
    torch.set_num_threads(1)
    for name in names:
        rows.append(timed(name, clones, tokens, 64, repeats))
        print(_line(rows[-1]), flush=True)
    text = [f"{told(settings)} {MEANING}", ""]
    text += ["| method | code of its authors | ours, ms | theirs, ms | times as fast | same kept or merged |"]
    text += ["|---" * 6 + "|", *map(_line, rows)]
    content = {"settings": settings, "machine": machine(), "rows": [asdict(row) for row in rows]}
    torch.set_num_threads(before)
    output.mkdir(parents=True, exist_ok=True)
    (output / "authors.json").write_text(json.dumps(content, indent=1) + "\n")
    (output / "authors.md").write_text("\n".join(text) + "\n")


def _line(row: Row) -> str:
    return (
        f"| {row.method} | {row.repository}@{row.commit[:7]} | {row.ours:.1f} | {row.theirs:.1f} "
        f"| {written(row.faster)} | {row.same} of {row.pictures} |"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.methods.authors", description=__doc__)
    parser.add_argument("command", choices=("check", "time", "make"))
    parser.add_argument("--clones", type=Path, help="folder of repositories; without, they are cloned")
    parser.add_argument("--names", nargs="+", choices=tuple(ALL), help="files of golden; all without")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark", help="of authors.md and .json")
    given = parser.parse_args()
    clones = Clones(given.clones or ROOT / "clones", fetch=given.clones is None)
    names = given.names or list(ALL)
    if given.command == "check":
        sys.exit(check(names, clones))
    if given.command == "make":
        make(names, clones)
    else:
        first = {run: name for name, run in reversed(RUNS.items())}
        time(given.names or [name for name in RUNS if first[RUNS[name]] == name], clones, given.output, given.repeats)


if __name__ == "__main__":
    main()
