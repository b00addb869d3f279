"""Runs that end, are taken up again, or are asked for something else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from crtc.training import fit as fitting
from crtc.training.fit import fit, fit_scorer, trainer_for
from crtc.training.scorer import ScorerTraining
from tests.training.test_scorer import CPU, make, weights


def run(host: Path, folder: Path, *, every: int = 2, patience: int = 6, **settings: Any) -> dict[str, Any]:
    """Train a little and give the last checkpoint."""
    fit_scorer(make(host, **settings), folder, every=every, patience=patience, track=False, **CPU)
    return dict(torch.load(folder / "last.ckpt", weights_only=False))


def test_the_last_steps_are_looked_at_too(small_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(small_host, tmp_path, steps=3)["done"] == 3
    before = weights(tmp_path / "scorer")
    again = make(small_host, steps=3)
    monkeypatch.setattr(again, "training_step", lambda *given: pytest.fail("a step was trained again"))
    fit_scorer(again, tmp_path, every=2, track=False, **CPU)
    for name, value in weights(tmp_path / "scorer").items():
        assert torch.equal(value, before[name]), name


def test_a_run_that_stopped_early_stays_stopped(
    small_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = {"learning_rate": 1e-12, "guided_learning_rate": 1e-12, "steps": 9}
    assert run(small_host, tmp_path, every=1, patience=2, **still)["done"] == 3
    again = make(small_host, **still)
    monkeypatch.setattr(again, "training_step", lambda *given: pytest.fail("a step was trained again"))
    fit_scorer(again, tmp_path, every=1, patience=2, track=False, **CPU)
    with pytest.raises(ValueError, match=r"had seed 0 and not 1, expected the same"):
        run(small_host, tmp_path, every=1, patience=2, seed=1, **still)
    with pytest.raises(ValueError, match=r"patience is 4 and the run in .* stopped early after 2 validations"):
        run(small_host, tmp_path, every=1, patience=4, **still)


def test_a_run_goes_on_as_patient_as_it_is_asked_to_be(
    small_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = {"learning_rate": 1e-12, "guided_learning_rate": 1e-12, "steps": 9}
    step, stopped = ScorerTraining.training_step, KeyboardInterrupt("at the third step")

    def interrupted(module: ScorerTraining, batch: Any, index: int) -> Any:
        if module.done == 2:
            raise stopped
        return step(module, batch, index)

    monkeypatch.setattr(ScorerTraining, "training_step", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(small_host, tmp_path, every=1, patience=2, **still)
    monkeypatch.setattr(ScorerTraining, "training_step", step)
    assert run(small_host, tmp_path, every=1, patience=4, **still)["done"] == 5


@pytest.mark.parametrize("given", [{"every": 0}, {"patience": 0}])
def test_numbers_that_cannot_be(small_host: Path, tmp_path: Path, given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"every is \d and patience \d, expected at least 1 each"):
        run(small_host, tmp_path, **given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 4}, "trainer.devices is 4, expected 1, or a list of one index"),
        ({"devices": "auto"}, "trainer.devices is 'auto', expected 1"),
        ({"num_nodes": 2}, "trainer.num_nodes is 2, expected 1"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches is 2, expected 1"),
    ],
)
def test_what_would_change_who_sees_which_batch_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_for(tmp_path, monitor=None, every=1, track=False, **settings)


@pytest.mark.parametrize(("given", "taken"), [({}, 1), ({"devices": [2]}, [2])])
def test_one_device_is_taken(
    given: dict[str, Any], taken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the arguments, since a machine without several devices never takes more than one."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("lightning.Trainer", lambda **settings: asked.update(settings))
    trainer_for(tmp_path, monitor=None, every=1, track=False, **given)
    assert asked["devices"] == taken


def test_a_loss_that_is_not_finite_ends_the_run(
    small_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ScorerTraining._answers
    monkeypatch.setattr(ScorerTraining, "_answers", lambda *given: (answers(*given)[0] * torch.nan, answers(*given)[1]))
    with pytest.raises(ValueError, match=r"loss is nan after \d steps, expected a finite one; learning_rate is"):
        run(small_host, tmp_path)


def test_another_run_is_not_gone_on_with(small_host: Path, tmp_path: Path) -> None:
    run(small_host, tmp_path)
    with pytest.raises(ValueError, match=r"had learning_rate 0.0005 and not 0.1, seed 0 and not 1, expected the same"):
        run(small_host, tmp_path, learning_rate=0.1, seed=1)


def test_settings_of_the_trainer_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(fitting, "fit_scorer", lambda module, folder, **given: asked.update(given) or folder)
    fit(["--folder", str(tmp_path), "--every", "7", "--trainer.max_steps", "3", "--trainer.accelerator", "cpu"])
    assert asked == {"every": 7, "patience": 6, "max_steps": 3, "accelerator": "cpu"}
    with pytest.raises(ValueError, match=r"trainer.max_epochs is 2, expected --folder, --every or --patience"):
        fit(["--folder", str(tmp_path), "--trainer.max_epochs", "2"])
