"""Training of the scorer: it resumes exactly, shares what no question changes, and leaves the host alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crtc import dtypes
from crtc.hosts.dialogue import answer_logits, shared_logits
from crtc.methods.reinforced_scorer import ReinforcedScorer
from crtc.tasks.picture import Glyphs
from crtc.tokens import Groups
from crtc.training.fit import fit_scorer
from crtc.training.scorer import ScorerTraining, _Batches, _spread

DESIGN = {"hidden": 8, "channels": 2, "metric": 4, "degree": 3, "reaches": [1]}
CPU = {"accelerator": "cpu"}


def make(host: Path, **settings: Any) -> ScorerTraining:
    tiny = {"design": DESIGN, "pictures": 2, "questions": 3, "counts": [8], "steps": 4, "calibration_pictures": 1}
    return ScorerTraining(str(host), **{**tiny, "precision": "float32", **settings})


def weights(folder: Path) -> dict[str, Tensor]:
    return ReinforcedScorer.from_pretrained(folder).state_dict()


@pytest.fixture(scope="module")
def straight(small_host: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps."""
    folder = tmp_path_factory.mktemp("straight")
    fit_scorer(make(small_host), folder, every=2, track=False, **CPU)
    return folder


def test_an_interrupted_run_goes_on_exactly(small_host: Path, straight: Path, tmp_path: Path) -> None:
    fit_scorer(make(small_host), tmp_path, every=2, track=False, max_steps=2, **CPU)
    first = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert first["done"] == first["global_step"] == 2
    again = make(small_host)
    fit_scorer(again, tmp_path, every=2, track=False, **CPU)
    assert again.done == 4
    one, other = (torch.load(folder / "last.ckpt", weights_only=False) for folder in (straight, tmp_path))
    assert one["done"] == other["done"] == 4
    assert any(not torch.equal(first["state_dict"][name], value) for name, value in one["state_dict"].items())
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    for name, value in weights(straight / "scorer").items():
        assert torch.equal(value, weights(tmp_path / "scorer")[name]), name


def test_a_finished_run_is_left_as_it_is(small_host: Path, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(straight / "scorer")
    module = make(small_host)
    monkeypatch.setattr(module, "training_step", lambda *given: pytest.fail("a step was trained again"))
    fit_scorer(module, straight, every=2, track=False, **CPU)
    for name, value in weights(straight / "scorer").items():
        assert torch.equal(value, before[name]), name


def test_a_run_shorter_than_a_validation_is_exported(small_host: Path, tmp_path: Path) -> None:
    module = make(small_host, steps=1)
    done = fit_scorer(module, tmp_path, every=100, track=False, **CPU)
    for name, value in weights(done).items():
        assert torch.equal(value, module.scorer.state_dict()[name]), name


def test_checkpoints_hold_the_scorer_alone(straight: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        stored = torch.load(straight / name, weights_only=False)["state_dict"]
        assert stored and all(key.startswith("scorer.") for key in stored)
    scorer = ReinforcedScorer.from_pretrained(straight / "scorer")
    assert {f"scorer.{key}" for key in scorer.state_dict()} == set(stored)
    assert scorer.design.width == 32 and scorer.design.reaches == (1,)


def test_the_scorer_says_where_it_comes_from(straight: Path, small_host: Path) -> None:
    origin = ReinforcedScorer.from_pretrained(straight / "scorer").origin
    best = torch.load(straight / "best.ckpt", weights_only=False)
    assert origin is not None and origin.host == small_host.name
    assert origin.settings["steps"] == 4 and origin.settings["design"] == DESIGN
    assert origin.calibration == best["calibration"]
    assert {"kl", "kl_aware_8", "kl_blind_8", "accuracy_aware_8", "accuracy_blind_8"} <= set(origin.calibration)
    assert str(small_host.parent) not in (straight / "scorer" / "README.md").read_text()


@pytest.mark.parametrize(("gain", "runs"), [(1.0, "float32"), (4.0, "bfloat16")])
def test_the_host_runs_in_what_the_machine_is_fast_in(
    gain: float, runs: str, small_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another device than the trainer's was expected; settings keep what was asked for."""
    measured = {torch.float32: gain, torch.bfloat16: 1.0}
    monkeypatch.setattr(dtypes, "seconds", measured.__getitem__)
    with monkeypatch.context() as expected:
        other = torch.float32 if runs == "bfloat16" else torch.bfloat16
        expected.setattr(dtypes, "fast_dtype", lambda device: other)
        module = make(small_host, precision="auto", steps=1)
    assert module.host_dtype != runs and module.hparams["precision"] == "auto"
    done = fit_scorer(module, tmp_path, every=1, track=False, **CPU)
    assert module.host_dtype == runs and module.hparams["precision"] == "auto"
    origin = ReinforcedScorer.from_pretrained(done).origin
    assert origin is not None and origin.settings["precision"] == runs
    measured[torch.float32] = 4.0 if gain == 1.0 else 1.0  # on another machine, nothing left to train
    origin = ReinforcedScorer.from_pretrained(
        fit_scorer(make(small_host, precision="auto", steps=1), tmp_path, every=1, track=False, **CPU)
    ).origin
    assert origin is not None and origin.settings["precision"] == runs
    with pytest.raises(ValueError, match=r"had precision 'auto' and not 'float16', expected the same settings"):
        fit_scorer(make(small_host, precision="float16", steps=1), tmp_path, every=1, track=False, **CPU)


@pytest.mark.parametrize("gate", ["assignment", "noise"])
@pytest.mark.parametrize("blind_share", [0.0, 1.0])
def test_the_host_stays_frozen(small_host: Path, gate: str, blind_share: float) -> None:
    module = make(small_host, gate=gate, blind_share=blind_share, guided=0.0, precision="bfloat16")
    host = module._host[0]
    before = {name: value.clone() for name, value in host.state_dict().items()}
    loss = module.training_step([module.task[0], module.task[1]], 0)
    loss.backward()
    assert bool(torch.isfinite(loss)) and float(loss) > 0 and module.done == 1
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in host.parameters())
    for name, value in host.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(parameter is own for parameter in host.parameters() for own in module.parameters())
    assert not host.training
    gradient = module.scorer.head[1].weight.grad
    assert gradient is not None and float(gradient.norm()) > 0


@pytest.mark.parametrize("gate", ["assignment", "mask"])
def test_blind_batches_read_a_picture_once_with_the_same_gradient(
    small_host: Path, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(small_host, gate=gate, blind_share=1.0, guided=0.0, attention_weight=0.0)
    batch = [module.task[0], module.task[1]]

    def step() -> tuple[Tensor, Tensor]:
        module.done = 0
        module.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        return loss.detach(), torch.cat([w.grad.flatten() for w in module.scorer.parameters() if w.grad is not None])

    loss, gradient = step()
    host = module._host[0]
    monkeypatch.setattr(
        module, "_logits", lambda pupil, inputs, targets, question: answer_logits(host, inputs, targets)[0]
    )
    row_by_row, expected = step()
    torch.testing.assert_close(loss, row_by_row, atol=0, rtol=1e-4)
    assert float(expected.norm()) > 0
    assert float((gradient - expected).norm()) < 1e-3 * float(expected.norm())


def test_guided_steps_follow_attention_alone(small_host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(small_host, guided=0.5, blind_share=0.0, learning_rate=1e-4, guided_learning_rate=3e-3)
    batch = [module.task[0], module.task[1]]
    answers, asked = module._answers, []
    monkeypatch.setattr(module, "_answers", lambda *given: asked.append(module.done) or answers(*given))
    pupil = module.prepare(batch)
    said = module.importance(pupil, True)
    assert pupil.looks_at is not None
    share = said.logit.masked_fill(~said.groups.valid, -torch.inf).softmax(1)
    apart = (torch.special.xlogy(pupil.looks_at, pupil.looks_at / share.clamp(min=1e-30))).sum(1).mean()
    torch.testing.assert_close(module.training_step(batch, 0), apart)
    for _ in range(3):
        module.training_step(batch, 0)
    assert asked == [2, 3]
    optimizer = module.configure_optimizers()
    schedule = optimizer["lr_scheduler"]["scheduler"].lr_lambdas[0]  # type: ignore[index,typeddict-item]
    assert [round(1e-4 * schedule(step), 6) for step in range(4)] == [
        pytest.approx(rate, abs=1e-6) for rate in (1e-4, 1e-4, 1e-4 / 30, 1e-4 / 30)
    ]


def test_what_is_found_once_per_picture_is_what_every_row_finds(small_host: Path) -> None:
    module = make(small_host)
    pictures = [module.task[0], module.task[1]]
    pupil = module.prepare(pictures)
    assert pupil.looks.num_groups == 2 and pupil.asked.num_groups == 6
    spread = _spread(module.scorer.neighbors(pupil.looks), Groups.of(pupil.looks), Groups.of(pupil.asked), pupil)
    direct = module.scorer.neighbors(pupil.asked)
    inside = pupil.asked.candidates
    valid = direct.valid[inside]
    assert torch.equal(spread.valid[inside], valid)
    for name in ("index", "relation", "likeness"):
        one, other = (getattr(found, name)[inside][valid] for found in (spread, direct))
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("question", [True, False])
def test_importance_is_that_of_every_prompt_alone(small_host: Path, question: bool) -> None:
    module = make(small_host)
    pupil = module.prepare([module.task[0], module.task[1]])
    with torch.no_grad():
        said = module.importance(pupil, question)
        module.scorer.question_aware = question
        direct = module.scorer.importance(pupil.asked)
    torch.testing.assert_close(said.logit, direct.logit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(said.place, direct.place, atol=1e-5, rtol=1e-5)
    same = torch.allclose(said.logit[0], said.logit[1], atol=1e-6)  # two questions about one picture
    assert same != question
    k = torch.full((6,), 8)
    plan, other = (
        module.scorer.plan_from(part, pupil.encoded.tokens, k) for part in (said, module.importance(pupil, question))
    )
    assert torch.equal(plan.kept, other.kept) and plan.num_kept.tolist() == [8] * 6


def test_the_teacher_is_the_full_model(small_host: Path) -> None:
    module = make(small_host)
    pupil = module.prepare([module.task[0]])
    rows = pupil.encoded.tokens.x[pupil.encoded.tokens.group == 0]
    images = module._host[0].model.get_image_features(
        pixel_values=module._host[1].image_processor(module.task[0].image, return_tensors="pt")["pixel_values"],
        return_dict=True,
    )
    torch.testing.assert_close(rows, images.pooler_output[0])
    images.pooler_output = list(images.pooler_output)
    inputs = {name: pupil.encoded.inputs[name] for name in ("input_ids", "attention_mask")}
    logits = shared_logits(
        module._host[0], {**inputs, "mm_encoder_outputs": {"image": images}}, pupil.image_of, pupil.targets
    )
    torch.testing.assert_close(pupil.teacher, logits.log_softmax(-1))
    torch.testing.assert_close(pupil.teacher.exp().sum(-1), torch.ones(len(pupil.teacher)))


def test_the_same_step_draws_the_same_pictures() -> None:
    task = Glyphs("train", 1000, 1)
    one, other = (list(_Batches(task, 2, start, 4, seed=0)) for start in (0, 2))
    assert [p.questions for batch in one[2:] for p in batch] == [p.questions for batch in other for p in batch]
    assert one[0][0].questions != one[1][0].questions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "lottery"}, "'lottery'.*'assignment', 'mask', 'noise'"),
        ({"counts": [8, 0]}, r"counts is \(8, 0\)"),
        ({"counts": []}, r"counts is \(\)"),
        ({"design": {"depth": 3}}, "depth"),
        ({"data": "nowhere.jsonl"}, r"nowhere\.jsonl"),
        ({"precision": "float3"}, "precision is 'float3', expected one of auto, float32, bfloat16, float16"),
        ({"steps": 0}, "steps is 0"),
        ({"blind_share": 40}, "blind_share is 40"),
        ({"design": {"reaches": [0]}}, r"reaches is \(0,\)"),
        ({"guided": 1.0}, "guided is 1.0"),
        ({"scorer": "kmeans"}, "scorer is 'kmeans', expected one of .*reinforced_scorer"),
        ({"scorer": "learn_pruner", "design": {}}, "gate is 'assignment' and learn_pruner does not cluster"),
        ({"scorer": "learn_pruner", "gate": "mask"}, "degree.*learn_pruner does not take"),
        ({"gate": "mask", "mass": False}, "mass is False"),
    ],
)
def test_refuses(small_host: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(small_host, **settings)
