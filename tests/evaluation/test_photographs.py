"""Methods inside an image classifier, on photographs of noise: what runs, resumes, is skipped, and is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from crtc.evaluation.photographs import Photographs
from crtc.evaluation.photographs_report import curves, markdown, save, summary
from crtc.hosts.classifier import Classifier, load_classifier
from crtc.methods import ClsAttention, DivPrune, FastV, HiPrune, KMeans, MMTok, Random, ReinforcedScorer
from crtc.methods.method import ScoreMethod
from crtc.tasks.labelled import Labelled, labelled
from crtc.tokens import Tokens
from tests.classifiers import make_model, write_folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    return load_classifier(folder)


@pytest.fixture(scope="module")
def data(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Ten images, of which the model is right about six."""
    found = labelled(write_folder(tmp_path_factory.mktemp("data")), classifier.label2id, classifier.num_classes)
    logits = classifier.read(classifier.pixels([found.image(i) for i in range(10)]), [1])[0]
    found.labels = logits.argmax(-1).numpy()
    found.labels[6:] = (found.labels[6:] + 1) % 5
    return found


class Spy(ScoreMethod):
    """Counts its plans, and stops after some."""

    family = "control"
    source = "test"

    def __init__(self, stop: int = 1000):
        super().__init__()
        self._stop, self.plans = stop, 0

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        self.plans += 1
        if self.plans > self._stop:
            raise KeyboardInterrupt
        return tokens.x.norm(dim=1)


SETTING: dict[str, Any] = {"layers": [1, 3], "counts": [4, 8], "masses": (False, True), "batch": 4}


def test_every_cell_is_measured(classifier: Classifier, data: Labelled) -> None:
    results = Photographs(classifier, data, {"kmeans": KMeans(), "cls": ClsAttention()}, **SETTING).run()
    assert results.full.sum() == 6 and sorted(results.image) == list(range(10))
    cells = {
        (label, layer, mass, n) for label in ("kmeans", "cls") for layer in (1, 3) for mass in (0, 1) for n in (8, 4)
    }
    assert set(results.runs) == cells and all(len(right) == 10 for right in results.runs.values())
    assert results.milliseconds["kmeans", 1, 4] > 0 and not results.skipped
    assert results.config["counts"] == [8, 4] and results.config["images"] == 10


def test_a_count_of_all_is_the_full_model(classifier: Classifier, data: Labelled) -> None:
    results = Photographs(classifier, data, {"kmeans": KMeans()}, **{**SETTING, "counts": [16]}).run()
    assert all(np.array_equal(right, results.full) for right in results.runs.values())


def test_defaults(classifier: Classifier, data: Labelled) -> None:
    photographs = Photographs(classifier, data, {"random": Random()})
    assert photographs.layers == (1, 2, 3) and photographs.counts == (8, 4, 2, 1)
    assert photographs.masses == (True,) and photographs.images == 10


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    classifier: Classifier, data: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Photographs(classifier, data, {"spy": Spy()}, **SETTING).run()
    with pytest.raises(KeyboardInterrupt):
        Photographs(classifier, data, {"spy": Spy(stop=10)}, **SETTING).run(tmp_path)  # in the third of three batches
    capsys.readouterr()
    spy = Spy()
    resumed = Photographs(classifier, data, {"spy": spy}, **SETTING).run(tmp_path)
    assert spy.plans == 4  # two layers, two counts
    assert "8/10" in capsys.readouterr().err  # the bar starts behind what is there
    assert all(np.array_equal(resumed.runs[cell], right) for cell, right in whole.runs.items())
    again = Spy()
    Photographs(classifier, data, {"spy": again}, **SETTING).run(tmp_path)
    assert again.plans == 0


def test_one_method_more_runs_alone(classifier: Classifier, data: Labelled, tmp_path: Path) -> None:
    Photographs(classifier, data, {"spy": Spy()}, **SETTING).run(tmp_path)
    spy = Spy()
    results = Photographs(classifier, data, {"spy": spy, "random": Random()}, **SETTING).run(tmp_path)
    assert spy.plans == 0 and {label for label, *_ in results.runs} == {"spy", "random"}


def test_a_longer_run_goes_on_behind_a_shorter_one(classifier: Classifier, data: Labelled, tmp_path: Path) -> None:
    Photographs(classifier, data, {"spy": Spy()}, images=8, **SETTING).run(tmp_path)
    spy = Spy()
    results = Photographs(classifier, data, {"spy": spy}, **SETTING).run(tmp_path)
    assert spy.plans == 4 and len(results.full) == 10


def test_other_settings_are_not_mixed(classifier: Classifier, data: Labelled, tmp_path: Path) -> None:
    Photographs(classifier, data, {"spy": Spy()}, **SETTING).run(tmp_path)
    for change in ({"counts": [4]}, {"layers": [2]}, {"masses": (True,)}, {"batch": 5}):
        spy = Spy()
        Photographs(classifier, data, {"spy": spy}, **{**SETTING, **change}).run(tmp_path)
        assert spy.plans > 0


def test_what_cannot_run_is_skipped_with_the_reason(classifier: Classifier, data: Labelled, tmp_path: Path) -> None:
    torch.manual_seed(0)
    methods = {
        "kmeans": KMeans(),
        "mmtok": MMTok(),
        "fastv": FastV(),
        "hiprune": HiPrune(),
        "scorer": ReinforcedScorer(32),
    }
    results = Photographs(classifier, data, methods, **SETTING).run(tmp_path)
    assert {label for label, *_ in results.runs} == {"kmeans"}
    assert results.skipped["mmtok"] == "it reads a question, and a classifier is asked none"
    assert results.skipped["fastv"] == "it acts inside a language model"
    assert results.skipped["hiprune"] == "the classifier gives no shallow_attention"
    assert "24" in results.skipped["scorer"] and "32" in results.skipped["scorer"]
    with pytest.raises(ValueError, match="no method can run: fastv: it acts inside a language model"):
        Photographs(classifier, data, {"fastv": FastV()}, **SETTING).run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [0]}, "layer is 0, expected 1 to 3"),
        ({"layers": [4]}, "layer is 4, expected 1 to 3"),
        ({"layers": []}, "layers is empty"),
        ({"counts": [17]}, r"counts is \[17\], expected numbers from 1 to the 16 patch tokens"),
        ({"counts": [0]}, r"counts is \[0\]"),
        ({"masses": ()}, "masses is empty"),
        ({"images": 11}, "images is 11, expected 1 to the 10"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str, classifier: Classifier, data: Labelled) -> None:
    with pytest.raises(ValueError, match=message):
        Photographs(classifier, data, {"random": Random()}, **{**SETTING, **change})


def test_what_is_written(classifier: Classifier, data: Labelled, tmp_path: Path) -> None:
    methods = {"random": Random(), "div_prune": DivPrune(), "mmtok": MMTok()}
    results = Photographs(classifier, data, methods, **SETTING).run()
    table = save(results, tmp_path)
    said = json.loads((tmp_path / "results.json").read_text())
    assert said["images"] == 10 and said["reference"] == "random" and said["accuracy"]["value"] == pytest.approx(60)
    assert len(said["rows"]) == 16
    for row in said["rows"]:
        right = results.runs[row["method"], row["layer"], row["mass"], row["count"]]
        against = results.runs["random", row["layer"], row["mass"], row["count"]]
        assert row["accuracy"]["value"] == pytest.approx(10 * right.sum())
        assert row["relative"]["value"] == pytest.approx(100 * right.sum() / 6)
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
        if row["method"] == "random":
            assert row["difference"] is None
        else:
            difference = 100 * (right.sum() - against.sum()) / 6
            assert row["difference"]["value"] == pytest.approx(difference)
    assert table == (tmp_path / "table.md").read_text()
    assert table.count("| method | mass | 8 | 4 |") == 2 and "10 images" in table and "60.0 [" in table
    for layer in (1, 3):
        assert f"in front of layer {layer}" in table
    for label in ("random", "div_prune"):
        for mass in ("plain", "kept"):
            assert table.count(f"\n| {label} | {mass} |") == 2
    assert "mmtok was skipped: it reads a question" in table and "mean = std = 0.5" in table
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    stored = np.load(tmp_path / "images.npz")
    assert np.array_equal(stored["div_prune|3|mass|8"], results.runs["div_prune", 3, True, 8])


def test_the_reference_is_reinforced_where_it_runs(classifier: Classifier, data: Labelled) -> None:
    results = Photographs(classifier, data, {"random": Random(), "reinforced": Spy()}, **SETTING).run()
    said = summary(results)
    assert said["reference"] == "reinforced" and "minus that of reinforced" in markdown(said)


def test_a_model_that_is_never_right(classifier: Classifier, data: Labelled, tmp_path: Path) -> None:
    results = Photographs(classifier, data, {"random": Random()}, **SETTING).run()
    results.full[:] = False
    save(results, tmp_path)
    said = json.loads((tmp_path / "results.json").read_text())
    assert said["rows"][0]["relative"]["value"] is None
    curves(said, tmp_path / "curves.png")
