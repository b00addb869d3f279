"""Scorers on the hub, which is a folder here: nothing of these tests touches a network."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

import crtc
from crtc.hosts.embedded import load_host
from crtc.methods import LearnPruner, trainable, trained
from crtc.methods.origin import Origin
from crtc.methods.reinforced_scorer import ReinforcedScorer
from crtc.tasks.picture import Glyphs
from tests.making import make_tokens

ORIGIN = Origin(
    "llava-hf/llava-1.5-7b-hf",
    {"steps": 1500, "counts": [64, 16]},
    {"kl": 0.3, "kl_aware_64": 0.125, "accuracy_aware_64": 0.9, "kl_blind_16": 0.5},
)


class Hub:
    """Repositories as folders, one of each revision."""

    def __init__(self, root: Path):
        self.root, self.asked = root, []
        self.made: list[tuple[str, bool]] = []

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made.append((repo, private))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.root / "main" / repo_id)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/{commit_message}")

    def snapshot_download(self, repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append((repo, allow_patterns))
        folder = self.root / (revision or "main") / repo
        if not folder.is_dir():
            raise OSError(f"404: no {repo}\nlong explanation")
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr("crtc.methods.sharing.HfApi", lambda: found)
    monkeypatch.setattr("crtc.methods.sharing.snapshot_download", found.snapshot_download)
    return found


def make(**settings: Any) -> ReinforcedScorer:
    torch.manual_seed(0)
    scorer = ReinforcedScorer(16, hidden=8, channels=2, metric=4, degree=3, **settings).eval()
    scorer.origin = ORIGIN
    return scorer


def test_there_and_back(hub: Hub) -> None:
    scorer, tokens = make(), make_tokens([[(4, 5)]])
    assert scorer.push_to_hub("me/mine", private=True, message="first") == "https://hub/me/mine/first"
    assert hub.made == [("me/mine", True)]
    assert sorted(file.name for file in (hub.root / "main/me/mine").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    for read in (ReinforcedScorer.from_pretrained("me/mine"), trained("me/mine")):
        assert read.origin == ORIGIN and read.made_of() == scorer.made_of() and not read.training
        torch.testing.assert_close(read.score(tokens), scorer.score(tokens), rtol=0, atol=0)
    assert hub.asked == [("me/mine", ["config.json", "model.safetensors"])] * 2
    blind = trained("me/mine", question=False)
    assert isinstance(blind, ReinforcedScorer) and not blind.question_aware


def test_a_folder_of_that_name_is_taken_first(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make().save_pretrained("me/mine")
    assert trained("me/mine").origin == ORIGIN and not hub.asked
    with pytest.raises(ValueError, match="revision is 'v1', but me/mine is a folder"):
        trained("me/mine", revision="v1")


def test_a_revision(hub: Hub) -> None:
    make().push_to_hub("me/mine")
    shutil.move(hub.root / "main", hub.root / "v1")
    assert trained("me/mine", revision="v1").origin == ORIGIN
    with pytest.raises(ValueError, match=r"'me/mine' is no folder, and the hub does not give it: 404: no me/mine$"):
        trained("me/mine")


def test_an_answer_of_the_hub_is_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repo: str, **_: Any) -> str:
        raise RepositoryNotFoundError("no such repository", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("crtc.methods.sharing.snapshot_download", refuse)
    with pytest.raises(ValueError, match="the hub does not give it: no such repository"):
        ReinforcedScorer.from_pretrained("me/mine")


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "/a/b", "../b", "a b/c"])
def test_what_is_no_hub_id_is_not_asked_for(repo: str, hub: Hub) -> None:
    with pytest.raises(ValueError, match="expected a hub id such as 'owner/name'"):
        make().push_to_hub(repo)
    with pytest.raises(ValueError, match="no readable scorer"):
        trained(repo)
    assert not hub.asked and not hub.made


def test_another_method_is_refused(hub: Hub) -> None:
    make().push_to_hub("me/mine")
    with pytest.raises(ValueError, match="me/mine holds a ReinforcedScorer, expected a LearnPruner"):
        LearnPruner.from_pretrained("me/mine")


def test_a_host_of_another_width_is_refused(hub: Hub) -> None:
    make().push_to_hub("me/mine")
    model, processor = load_host("embedded")
    inputs = processor(
        images=Glyphs("test", 1, 1)[0].image, text="USER: <image>\nhow many? ASSISTANT:", return_tensors="pt"
    )
    expected = "tokens have 192 channels, this scorer was trained on a host with 16, llava-hf/llava-1.5-7b-hf"
    with pytest.raises(ValueError, match=expected), crtc.compressed(model, trained("me/mine"), count=64):
        model(**inputs)


def test_the_card(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path, name="me/mine")
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: crtc\nlicense: apache-2.0\n")
    assert "base_model: llava-hf/llava-1.5-7b-hf\n---\n" in text
    assert "# ReinforcedScorer, trained through llava-hf/llava-1.5-7b-hf\n" in text
    assert "embedding space has 16 channels" in text and 'trained("me/mine")' in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| steps | 1500 |" in rows and "| counts | [64, 16] |" in rows and "| degree | 3 |" in rows
    figures = rows.index("| tokens | sees question | KL to the full model, nats | right answers, % |")
    assert rows[figures + 2 : figures + 4] == ["| 64 | yes | 0.1250 | 90.0 |", "| 16 | no | 0.5000 | - |"]


@pytest.mark.parametrize("name", sorted(trainable()))
def test_a_card_without_an_origin(name: str, tmp_path: Path) -> None:
    trainable()[name].for_width(16).save_pretrained(tmp_path / "mine")
    text = (tmp_path / "mine" / "README.md").read_text()
    assert "base_model" not in text and text.count("Not noted.") == 2 and "embedding space has 16 channels" in text
    assert "origin" not in json.loads((tmp_path / "mine" / "config.json").read_text())
    assert trained(tmp_path / "mine").origin is None
