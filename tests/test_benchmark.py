"""The benchmark: loops and batched methods make the same plans; times are written down and never asserted."""

import json
from pathlib import Path

import pytest
import torch

from crtc import benchmark
from crtc.benchmark import LOOPS, duel, make_pictures, owners, samples
from crtc.cli import main
from crtc.methods import ReinforcedScorer, catalogue, get_method, trainable, unready


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(("size", "count", "seed"), [(30, 7, 0), (30, 7, 1), (49, 20, 2), (12, 11, 3), (9, 1, 4)])
def test_a_loop_makes_the_plans_of_the_method(name: str, size: int, count: int, seed: int) -> None:
    tokens = make_pictures(3, size, 32, seed)
    k = torch.tensor([count, max(count - 1, 1), min(count + 1, size - 1)])
    plan = get_method(name)(tokens, k)
    alone = torch.stack([LOOPS[name](one, int(number)) for one, number in zip(samples(tokens), k, strict=True)])
    assert torch.equal(owners(plan, tokens), alone)
    assert ((alone == torch.arange(size)).sum(1)).equal(k)


def test_made_up_pictures_are_whole() -> None:
    tokens = make_pictures(2, 30, 8)
    assert tokens.group_sizes.tolist() == [30, 30] and len(tokens.signals.present) == 11
    assert not any(get_method(name).missing(tokens) for name in catalogue())
    assert torch.equal(tokens.x, make_pictures(2, 30, 8).x)
    assert not torch.equal(tokens.x, make_pictures(2, 30, 8, seed=1).x)


def test_a_difference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = make_pictures(2, 20, 8)
    k = torch.tensor([3, 3])
    assert (duel("div_prune", tokens, k, 2).equal, duel("div_prune", tokens, k, 2).alike) == (2, 1.0)
    monkeypatch.setitem(LOOPS, "div_prune", lambda one, number: torch.arange(20).clamp(max=number - 1))
    other = duel("div_prune", tokens, k, 2)
    assert other.equal < 2 and other.alike < 1


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("crtc.methods.learned.SHIPPED", tmp_path / "none")
    main(["benchmark", "--batch", "2", "--tokens", "16", "--count", "3", "--repeats", "2"])
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "runs" / "benchmark" / "benchmark.json").read_text())
    assert {one["method"]: one["equal"] for one in content["duels"]} == dict.fromkeys(LOOPS, 2)
    assert set(content["planning"]) == set(catalogue()) - set(unready())
    assert content["skipped"] == unready() and set(unready()) == set(trainable())
    assert content["settings"]["tokens"] == 16 and content["machine"]["threads"] >= 1
    for name in LOOPS:
        assert f"| {name} | " in said and "| 2 of 2 | 100.00 |" in said
    assert f"learn_pruner was skipped: {unready()['learn_pruner']}." in said
    assert said.endswith("wrote benchmark.json and table.md to runs/benchmark\n")


def test_what_cannot_run_at_this_width_is_told(tmp_path: Path) -> None:
    said = benchmark.benchmark(
        tmp_path, methods=["random", "reinforced_scorer"], batch=1, size=9, count=2, channels=8, repeats=1
    )
    assert "reinforced_scorer was skipped: tokens have 8 channels" in said and "| random | " in said
    assert isinstance(get_method("reinforced_scorer"), ReinforcedScorer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "batch is 0"),
        (["--count", "577"], "count is 577"),
        (["--repeats", "0"], "repeats is 0"),
        (["--methods", "[kmeens]"], "'kmeens'"),
    ],
)
def test_mistakes(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err
