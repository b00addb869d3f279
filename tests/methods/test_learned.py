"""What learned methods share: their folder says whose it is, and none is used before it is trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crtc.methods import (
    ASAPooling,
    DiffPrune,
    LearnPruner,
    SAGPooling,
    TopKPooling,
    VisionSelector,
    get_method,
    trainable,
    trained,
    unready,
)
from crtc.methods.learned import Learned
from crtc.methods.pyg_pooling import _Pooling
from crtc.methods.reinforced_scorer import ReinforcedScorer
from crtc.tokens import Groups, Tokens
from tests.making import make_tokens

PEERS = sorted(set(trainable()) - {"reinforced_scorer"})
every_peer = pytest.mark.parametrize("name", PEERS)


@pytest.fixture
def tokens() -> Tokens:
    return make_tokens([[(4, 5)], [(3, 3), (2, 4)]])


def make(name: str) -> Learned:
    torch.manual_seed(0)
    return trainable()[name].for_width(16).eval()


@pytest.mark.parametrize("name", trainable())
def test_weights_ship_for_the_embedded_host(name: str) -> None:
    scorer = get_method(name)
    assert type(scorer) is trainable()[name] and not scorer.training
    assert scorer.origin is not None and scorer.origin.host == "embedded" and scorer.origin.calibration
    assert not unready()


def test_what_has_no_weights_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crtc.methods.learned.SHIPPED", tmp_path)
    assert list(unready()) == list(trainable())
    with pytest.raises(ValueError, match="LearnPruner is not ready for use: no weights ship"):
        get_method("learn_pruner")


@every_peer
def test_a_folder_says_whose_it_is(name: str, tokens: Tokens, tmp_path: Path) -> None:
    scorer = make(name)
    scorer.save_pretrained(tmp_path)
    read = trained(tmp_path)
    assert type(read) is type(scorer) and read.made_of() == scorer.made_of() and not read.training
    torch.testing.assert_close(read.score(tokens), scorer.score(tokens), rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"holds a {type(scorer).__name__}, expected a ReinforcedScorer"):
        ReinforcedScorer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no readable scorer"):
        trained(tmp_path, question=False)


@pytest.mark.parametrize("former", [{}, {"method": "Reinforced"}])
def test_a_folder_that_names_no_method_or_the_former_name_is_ours(tmp_path: Path, former: dict[str, str]) -> None:
    shutil.copytree(ReinforcedScorer.shipped(), tmp_path / "old")
    config = json.loads((ReinforcedScorer.shipped() / "config.json").read_text())
    assert config.pop("method") == "ReinforcedScorer"
    (tmp_path / "old" / "config.json").write_text(json.dumps(config | former))
    read = trained(tmp_path / "old", question=False)
    assert isinstance(read, ReinforcedScorer) and not read.question_aware
    read.save_pretrained(tmp_path)
    for name, value in trained(tmp_path).state_dict().items():
        assert torch.equal(value, read.state_dict()[name])
    stored, made = (
        json.loads((folder / "config.json").read_text())["design"] for folder in (ReinforcedScorer.shipped(), tmp_path)
    )
    assert stored == made


@pytest.mark.parametrize("content", ["{", "[]", '{"method": "Oracle", "design": {}}'])
def test_folders_of_nothing_known_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"no readable scorer|holds a 'Oracle', expected one of .*LearnPruner"):
        trained(tmp_path)


@every_peer
def test_the_highest_scores_stay(name: str, tokens: Tokens) -> None:
    scorer = make(name)
    plan, score = scorer(tokens, torch.tensor([6, 3, 2])), scorer.score(tokens)
    assert bool((score[~tokens.candidates] == 0).all())
    for group, k in enumerate((6, 3, 2)):
        inside = (tokens.group == group).nonzero()[:, 0]
        best = inside[score[inside].topk(k).indices].sort().values
        assert torch.equal(plan.kept[tokens.group[plan.kept] == group], best)


@every_peer
def test_refuses_another_width(name: str, tokens: Tokens) -> None:
    with pytest.raises(ValueError, match="tokens have 16 channels, this scorer was trained on a host with 8"):
        trainable()[name].for_width(8).score(tokens)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (LearnPruner, {"hidden": 0}, "hidden 0"),
        (VisionSelector, {"hidden": 0}, "hidden 0"),
        (DiffPrune, {"layers": 0}, r"\(16, 128, 4, 0\)"),
        (DiffPrune, {"hidden": 10}, "expected a multiple of the 4 heads"),
        (SAGPooling, {"degree": 0}, "degree 0"),
    ],
)
def test_refuses(kind: type[Learned], settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(16, **settings)


def test_vision_selector_is_the_mean_of_attention_logits(tokens: Tokens) -> None:
    scorer = make("vision_selector")
    said = scorer.importance(tokens)
    for row, places in enumerate(said.groups.index):
        x = torch.nn.functional.layer_norm(tokens.x[places[said.groups.valid[row]]], (16,))
        logits = scorer.query(x) @ scorer.key(x).T / scorer.hidden**0.5
        torch.testing.assert_close(said.logit[row][said.groups.valid[row]], logits.mean(1))


@pytest.mark.parametrize("kind", [TopKPooling, SAGPooling, ASAPooling])
def test_pooling_chooses_what_the_layer_of_pyg_chooses(kind: type[_Pooling], tokens: Tokens) -> None:
    torch.manual_seed(0)
    scorer = kind(16).eval()
    lone = tokens.select(torch.tensor([0]))
    x = torch.nn.functional.layer_norm(lone.x, (16,))
    found = scorer.neighbors(lone)
    edges: Tensor = torch.zeros(2, 0, dtype=torch.long) if found is None else found.to_edges()[0]
    inside = lone.candidates.nonzero()[:, 0]
    assert bool(lone.candidates[edges].all())  # so that the layer may see the visual tokens alone
    scorer.layer.ratio = scorer.layer.select.ratio = 6
    given = [part for part in scorer.layer(x[inside], edges) if part is not None and part.ndim == 1]
    chosen = next(part for part in given if len(part) == 6 and not part.is_floating_point() and bool(part.any()))
    plan = scorer(lone, torch.tensor([6]))
    assert torch.equal(inside[chosen.sort().values], plan.kept)
    assert Groups.of(lone).valid.all()
