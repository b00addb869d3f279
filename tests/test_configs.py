"""Every configuration that ships fits the command that reads it."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from crtc.ablation import read, stacked
from crtc.methods import trainable
from crtc.methods.reinforced_scorer import Design, ReinforcedScorer
from crtc.training.fit import FitCLI
from crtc.training.gates import GATES
from crtc.training.host import STAGES, HostTraining
from crtc.training.scorer import ScorerTraining

CONFIGS = Path(__file__).parent.parent / "configs"
TRAINING = sorted(CONFIGS.glob("*.yaml"))
ABLATIONS = sorted((CONFIGS / "ablation").glob("*.yaml"))


class Parsed(FitCLI):
    """Reads and checks the configuration and makes nothing."""

    def instantiate_classes(self) -> None:
        """Make nothing."""


def parse(kind: type, arguments: list[str]) -> Parsed:
    return Parsed(kind, args=arguments, run=False, save_config_callback=None, trainer_defaults={"logger": False})


def by_name(file: Path) -> str:
    return file.stem


def test_there_are_configs() -> None:
    assert [file.stem for file in TRAINING if not file.stem.startswith(("host-", "peer_"))] == ["residual", "scorer"]
    assert {"base", "mlp", "no_propagation", "random_edges"} <= {file.stem for file in ABLATIONS}
    assert not list(CONFIGS.rglob("*.yml"))


@pytest.mark.parametrize("file", TRAINING, ids=by_name)
def test_training_configs(file: Path) -> None:
    kind = HostTraining if file.stem.startswith("host-") else ScorerTraining
    config = parse(kind, ["--config", str(file)]).config
    given = yaml.safe_load(file.read_text())
    for name, value in given["model"].items():
        assert config.model[name] == value
    assert config.folder == given["folder"] and config.every <= config.model.steps
    if kind is HostTraining:
        assert config.model.stage in STAGES


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("peer_*.yaml")), ids=by_name)
def test_peers_train_as_the_scorer_does_but_by_their_own_gate(file: Path) -> None:
    peer, scorer = (yaml.safe_load(path.read_text()) for path in (file, CONFIGS / "scorer.yaml"))
    assert peer["every"] == scorer["every"]
    assert {name: value for name, value in peer["model"].items() if name not in ("scorer", "gate")} == scorer["model"]
    assert peer["model"]["scorer"] in trainable() and peer["model"]["gate"] in set(GATES) - {"assignment"}
    assert peer["folder"] == f"runs/{file.stem}" and file.stem == f"peer_{peer['model']['scorer']}"


def test_host_stages_follow_one_another() -> None:
    stages = [yaml.safe_load(file.read_text()) for file in TRAINING if file.stem.startswith("host-")]
    assert "start_from" not in stages[0]["model"]
    for before, after in pairwise(stages):
        assert after["model"]["start_from"] == f"{before['folder']}/weights.pt"
    assert stages[-1]["model"].get("stage", "full") == "full"


def test_mistakes_in_a_config_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.yaml").write_text("model:\n  stepz: 3\n")
    with pytest.raises(SystemExit) as stop:
        parse(ScorerTraining, ["--config", str(tmp_path / "wrong.yaml")])
    assert stop.value.code == 2 and "stepz" in capsys.readouterr().err


@pytest.mark.parametrize("file", ABLATIONS, ids=by_name)
def test_ablations(file: Path) -> None:
    base = read(CONFIGS / "ablation" / "base.yaml")
    change = read(file)
    plan = stacked(base, change)
    assert plan["about"] and (file.stem == "base" or plan != base)
    assert file.stem == "base" or len(set(change) - {"about", "seeds", "mass"}) <= 1, "a change is one thing"
    design = dict(plan["model"].get("design", {}))
    scorer = ReinforcedScorer(8, **design)
    scorer.with_design(**plan.get("use", {}))
    assert plan["model"].get("gate", "assignment") in GATES
    assert int(plan.get("seeds", 1)) >= 1
    given = {name: value if isinstance(value, str) else json.dumps(value) for name, value in plan["model"].items()}
    config = parse(ScorerTraining, [f"--model.{name}={value}" for name, value in given.items()]).config
    for name, value in plan["model"].items():
        assert config.model[name] == value


def test_every_part_of_the_design_has_an_ablation() -> None:
    changed: set[str] = set()
    for file in ABLATIONS:
        content = read(file)
        changed |= set(content.get("model", {}).get("design", {})) | set(content.get("use", {}))
    switches = {"graph", "text_edges", "rewired", "inhibition", "merge", "selector", "steps"}
    assert switches <= changed and changed <= {name for name in vars(Design(8))}
