"""Every peer of the scorer trains through a frozen host as its configuration says, and comes back from its folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from crtc.methods import trainable, trained
from crtc.training.fit import fit_scorer
from crtc.training.scorer import ScorerTraining
from tests.making import make_tokens

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("peer_*.yaml"))
every_config = pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
SMALL: dict[str, Any] = {"learn_pruner": {"hidden": 8}, "vision_selector": {}, "diff_prune": {"hidden": 8, "heads": 2}}


def make(file: Path, host: Path, **settings: Any) -> ScorerTraining:
    """The training of a configuration, made tiny."""
    model = yaml.safe_load(file.read_text())["model"]
    tiny = {"pictures": 2, "questions": 2, "counts": [8], "steps": 3, "calibration_pictures": 1, "precision": "float32"}
    return ScorerTraining(str(host), **{**model, **tiny, "design": SMALL.get(model["scorer"], {}), **settings})


def test_every_peer_has_a_config() -> None:
    scorers = [yaml.safe_load(file.read_text())["model"]["scorer"] for file in CONFIGS]
    assert sorted(scorers) == sorted(set(trainable()) - {"reinforced_scorer"})
    assert [file.stem for file in CONFIGS] == [f"peer_{name}" for name in scorers]


@every_config
def test_trains_and_comes_back(file: Path, small_host: Path, tmp_path: Path) -> None:
    module = make(file, small_host)
    before = {name: value.clone() for name, value in module.scorer.state_dict().items()}
    folder = fit_scorer(module, tmp_path, every=3, track=False, accelerator="cpu")
    scorer = trained(folder)
    kind = trainable()[module.hparams["scorer"]]
    assert type(scorer) is kind and not scorer.training and module.done == 3
    after = scorer.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    tokens = make_tokens([[(4, 5)], [(3, 3)]], channels=32)
    k = torch.tensor([6, 2])
    plan, other = scorer(tokens, k), module.scorer.eval()(tokens, k)
    assert torch.equal(plan.kept, other.kept) and plan.num_kept.tolist() == [6, 2]


@every_config
def test_every_weight_that_scores_learns(file: Path, small_host: Path) -> None:
    module = make(file, small_host, counts=[64])
    loss = module.training_step([module.task[0], module.task[1]], 0)
    loss.backward()
    assert bool(torch.isfinite(loss))
    silent = [name for name, weight in module.scorer.named_parameters() if not _moves(weight.grad)]
    # a softmax does not see what is added to all, and PyG uses the sign alone of the one weight behind a convolution
    assert set(silent) <= {"layer.att.bias", "layer.select.weight"}, silent
    assert not any(weight.grad is not None for weight in module._host[0].parameters())


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and float(gradient.norm()) > 0


@every_config
def test_a_prompt_has_the_importance_of_its_picture(file: Path, small_host: Path) -> None:
    """Without the question it is found once per picture and is the same for all that is asked about it."""
    module = make(file, small_host)
    module.scorer.eval()
    pupil = module.prepare([module.task[0], module.task[1]])
    with torch.no_grad():
        said = module.importance(pupil, False)
        direct = module.scorer.importance(pupil.asked)
    torch.testing.assert_close(said.logit, direct.logit, atol=1e-4, rtol=1e-4)
    assert len(said.logit) == 4


def test_only_the_ways_of_a_scorer_are_trained(small_host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(CONFIGS[0], small_host, blind_share=0.0)
    asked: list[bool] = []
    real = module.importance
    monkeypatch.setattr(module, "importance", lambda pupil, question: asked.append(question) or real(pupil, question))
    module.training_step([module.task[0]], 0)
    assert asked == [False] and not module.scorer.question_aware
