"""Evaluation on the embedded host: what is kept whole stays whole, and interrupted runs go on."""

import importlib
import json
import linecache
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from crtc import compressed
from crtc.evaluation import Evaluation, evaluate
from crtc.evaluation.evaluate import ALL, NO_IMAGE, WRONG_IMAGE, Results, spread
from crtc.evaluation.parts import weights_digest
from crtc.evaluation.report import markdown, save, summary
from crtc.hosts import encode
from crtc.hosts.dialogue import dialogue, prompt_of, prompts
from crtc.hosts.embedded import load_host
from crtc.methods import ClsAttention, FastV, KMeans, Method, Random, VisionZip, catalogue, get_method
from crtc.methods.method import ScoreMethod, keep_all
from crtc.methods.reinforced_scorer import ReinforcedScorer
from crtc.tasks.glyphs.scene import make_scene
from crtc.tasks.picture import Glyphs, JsonLines, Picture, Question
from crtc.tokens import Tokens

Host = tuple[Any, Any]


class Task:
    """Pictures of a test."""

    name = "hand-made"

    def __init__(self, pictures: list[Picture]):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Picture:
        return self.pictures[index]


class Asked(KMeans):
    """K-means, planned for every question anew."""

    question_aware = True


class Needy(ScoreMethod):
    """Needs a signal that no host gives."""

    family = "control"
    needs = frozenset({"sonar"})  # type: ignore[arg-type]

    def score(self, tokens: Tokens) -> torch.Tensor:
        """Never called."""
        raise AssertionError


def same(one: Results, other: Results) -> None:
    assert one.runs.keys() == other.runs.keys()
    for key, run in one.runs.items():
        for name in ("right", "kl", "agree", "recall"):
            assert np.array_equal(getattr(run, name), getattr(other.runs[key], name), equal_nan=True), (key, name)


@pytest.fixture(scope="module")
def task() -> Task:
    glyphs = Glyphs("test", 3, 3)
    return Task([Picture(glyphs[i].image, glyphs[i].questions[: i + 1]) for i in range(3)])


def test_keeping_everything_loses_nothing(host: Host, task: Task) -> None:
    methods: dict[str, Method] = {name: kind.for_width(192) for name, kind in catalogue().items()}
    results = Evaluation(host, Task(task.pictures[:2]), methods, counts=[576]).run()
    full = results.full()
    assert set(results.labels) == set(catalogue()) and not results.skipped
    assert len(full.right) == 3 and full.right.any()
    for (label, _, count), run in results.runs.items():
        if count:
            assert np.array_equal(run.right, full.right), label
            assert float(run.kl.max()) < 1e-6 and bool((run.agree == 1).all()), label
            assert np.allclose(run.recall, 1), label
    for row in summary(results)["rows"]:
        if row["count"]:
            assert row["relative"] == {"value": 100.0, "low": 100.0, "high": 100.0}
            assert row["agreement"] == 100 and row["harmful_flips"] == row["lucky_flips"] == 0


def test_controls(host: Host, task: Task) -> None:
    results = Evaluation(host, task, {"kmeans": KMeans()}, counts=[16], masses=[True]).run()
    alone = Evaluation(host, Task(task.pictures[:1]), {"kmeans": KMeans()}, counts=[16], masses=[True]).run()
    assert (WRONG_IMAGE, False, 0) not in alone.runs and markdown(alone)
    assert set(results.runs) == {(ALL, False, 0), (NO_IMAGE, False, 0), (WRONG_IMAGE, False, 0), ("kmeans", True, 16)}
    assert float(results.full().kl.max()) == 0 and bool((results.full().agree == 1).all())
    for name in (NO_IMAGE, WRONG_IMAGE):
        assert float(results.runs[name, False, 0].kl.mean()) > 0.1
    assert results.picture.tolist() == [0, 1, 1, 2, 2, 2]
    assert results.family == tuple(q.family for picture in task.pictures for q in picture.questions)
    assert results.runs["kmeans", True, 16].milliseconds > 0


@torch.no_grad()
def test_no_image_is_the_question_alone(host: Host, task: Task) -> None:
    model, processor = host
    results = Evaluation(host, task, {"kmeans": KMeans()}, counts=[16], masses=[True]).run()
    for number, (picture, question) in enumerate((p, q) for p in task.pictures for q in p.questions):
        one = dialogue(processor, [Picture(picture.image, (question,))])
        stays = one.inputs["input_ids"][0] != model.config.image_token_id
        ids, targets = one.inputs["input_ids"][:, stays], one.targets[0, stays]
        places = stays.nonzero()[:, 0][None]
        logits = model(input_ids=ids, position_ids=places).logits[0]
        # the image ends before the question, so no answer position is lost with it
        right = bool((logits[targets != -100].argmax(-1) == targets[targets != -100]).all())
        assert right == results.runs[NO_IMAGE, False, 0].right[number]


def test_planning_once_per_picture_is_planning_for_every_question(host: Host, task: Task) -> None:
    methods = {"kmeans": KMeans(), "asked": Asked()}
    results = Evaluation(host, task, methods, counts=[24]).run()
    for mass in (False, True):
        once, often = results.runs["kmeans", mass, 24], results.runs["asked", mass, 24]
        assert np.array_equal(once.right, often.right)
        assert np.allclose(once.kl, often.kl, atol=1e-5) and np.allclose(once.recall, often.recall, atol=1e-6)
    assert results.aware == {"kmeans": False, "asked": True}


@torch.no_grad()
def test_spread_is_the_plan_of_every_prompt(host: Host, task: Task) -> None:
    model, processor = host
    talk = dialogue(processor, task.pictures)
    encoded = encode(model, talk.inputs, ["cls_attention", "keys"], image_of=talk.image_of)
    first = torch.tensor([0, 1, 3])
    looks = prompts(encoded, talk.targets).select(first)
    for method in (KMeans(), VisionZip(), ReinforcedScorer(192, question=False)):
        plan = spread(method(looks, torch.tensor([9, 30, 4])), looks, encoded.tokens, talk.image_of)
        direct = method(encoded.tokens, torch.tensor([9, 30, 30, 4, 4, 4]))
        assert torch.equal(plan.kept, direct.kept) and torch.equal(plan.slot, direct.slot)
        torch.testing.assert_close(plan.weight, direct.weight)
        assert torch.equal(plan.size, direct.size)
    assert torch.equal(
        spread(keep_all(looks), looks, encoded.tokens, talk.image_of).kept, keep_all(encoded.tokens).kept
    )


def test_batches_do_not_matter(host: Host, task: Task) -> None:
    methods = {"kmeans": KMeans(), "reinforced_scorer": ReinforcedScorer(192)}
    one, three = (Evaluation(host, task, methods, counts=[20], masses=[True], batch=size).run() for size in (1, 3))
    assert (WRONG_IMAGE, False, 0) in three.runs
    for key in one.runs:
        if key[0] != WRONG_IMAGE:  # another picture of the batch
            assert np.array_equal(one.runs[key].right, three.runs[key].right)
            assert np.allclose(one.runs[key].kl, three.runs[key].kl, atol=1e-4)


def test_an_interrupted_run_goes_on(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {"kmeans": KMeans(), "random": Random()}

    glyphs = Glyphs("test", 5, 1)
    five = Task([glyphs[i] for i in range(5)])

    def evaluation(**changes: Any) -> Evaluation:
        return Evaluation(host, five, methods, **{"counts": [16], "batch": 2, **changes})

    whole = evaluation().run(tmp_path)
    parts = sorted(tmp_path.glob("parts-*/*.pt"))
    # no picture is left without a wrong image
    assert [part.name[:6] for part in parts] == 3 * ["000000"] + 3 * ["000002"]
    kept = parts[0].stat().st_mtime_ns
    for part in parts[3:]:
        part.unlink()
    asked: list[tuple[int, list[str]]] = []
    batch = Evaluation._batch

    def counting(self: Evaluation, pictures: list[Picture], labels: list[str]) -> dict[str, Any]:
        asked.append((len(pictures), list(labels)))
        return batch(self, pictures, labels)

    monkeypatch.setattr(Evaluation, "_batch", counting)
    same(whole, evaluation().run(tmp_path))
    assert asked == [(3, ["kmeans", "random"])] and parts[0].stat().st_mtime_ns == kept
    same(whole, evaluation().run(tmp_path))
    assert len(asked) == 1
    methods["another"] = Random(seed=1)
    more = evaluation().run(tmp_path)
    assert asked[1:] == [(2, ["another"]), (3, ["another"])]
    assert more.labels == ("kmeans", "random", "another")
    for key, run in whole.runs.items():
        assert np.array_equal(more.runs[key].right, run.right)
    for changes in ({"counts": [8]}, {"masses": [True]}, {"positions": "repack"}, {"batch": 3}):
        asked.clear()
        results = evaluation(**changes).run(tmp_path)
        assert sum(pictures for pictures, _ in asked) == len(results.full().right) == 5, changes


def test_what_was_done_before_does_not_count_as_fast(
    host: Host, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the time that remains would be told from batches that were only read."""
    shown: list[tuple[int, int, int]] = []

    class Bar(tqdm):  # type: ignore[misc]
        def close(self) -> None:
            if not self.disable:
                shown.append((self.total, self.initial, self.n))
            super().close()

    monkeypatch.setattr("crtc.evaluation.evaluate.tqdm", Bar)

    def run(*names: str, folder: Path | None = tmp_path) -> list[tuple[int, int, int]]:
        shown.clear()
        methods: dict[str, Method] = {name: get_method(name) for name in names}
        Evaluation(host, task, methods, counts=[4], masses=[True], batch=1).run(folder)
        return shown

    assert run("norm") == [(2, 0, 2)]
    for file in sorted(tmp_path.rglob("*.pt"))[:2]:  # the first batch's
        file.unlink()
    assert run("norm") == [(2, 1, 2)]
    assert run("norm") == [(2, 2, 2)]
    assert run("norm", "pool") == [(2, 0, 2)]  # of every batch something is missing
    assert run("norm", folder=None) == [(2, 0, 2)]


def test_float_types_agree(host: Host) -> None:
    """Which one the machine is fast in may not decide what is measured."""
    task = Glyphs("test", 2, 6)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = host if dtype == torch.float32 else load_host(dtype=dtype)
        methods: dict[str, Method] = {name: get_method(name) for name in ("pool", "cls_attention")}
        found[dtype] = Evaluation(model, task, methods, counts=[64]).run()
        assert found[dtype].config["dtype"] == str(dtype)
    one, other = found.values()
    assert one.runs.keys() == other.runs.keys()
    for key, run in one.runs.items():
        assert (run.right != other.runs[key].right).sum() <= 1, key  # an answer on the edge may tip over
        if key[0] != "cls_attention":  # whose choice between tokens of equal attention is left to rounding
            assert abs((run.kl - other.runs[key].kl).mean()) <= 0.05 * run.kl.mean(), key


def test_other_weights_are_another_evaluation(host: Host, task: Task) -> None:
    torch.manual_seed(0)
    configs = [
        Evaluation(host, task, {"reinforced_scorer": ReinforcedScorer(192, **design)}, counts=[16]).config
        for design in ({}, {}, {"merge": False})
    ]
    assert configs[0] != configs[1] and configs[1] != configs[2]
    json.dumps(configs)


def test_other_answers_are_another_evaluation(host: Host, tmp_path: Path) -> None:
    Image.new("RGB", (192, 192)).save(tmp_path / "black.png")
    found = []
    for answer in ("red", "blue"):
        entry = {"image": "black.png", "question": "what color is the cross?", "answers": [answer]}
        (tmp_path / "data.jsonl").write_text(json.dumps(entry))
        found.append(Evaluation(host, JsonLines(tmp_path / "data.jsonl"), {"random": Random()}, counts=[16]).config)
    assert found[0] != found[1]


def test_other_pictures_and_versions_are_another_evaluation(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, lines = tmp_path / "a.png", tmp_path / "a.jsonl"
    Image.new("RGB", (20, 20)).save(image)
    lines.write_text(json.dumps({"image": "a.png", "question": "is it?", "answer": "yes"}))

    def setting() -> dict[str, Any]:
        return Evaluation(host, JsonLines(lines), {"random": Random()}, counts=(8,)).config

    before = setting()
    assert setting() == before
    Image.new("RGB", (21, 20)).save(image)
    assert setting()["task_settings"] != before["task_settings"]
    monkeypatch.setattr(evaluate, "__version__", "another")
    assert setting()["versions"]["crtc"] == "another"


def test_a_method_that_changed_is_measured_anew(
    host: Host, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for better in ("norm(dim=1)", "sum(dim=1)"):
        lines = ["from crtc.methods.method import ScoreMethod", "class Mine(ScoreMethod):", "    source = family = ''"]
        lines += ["    def score(self, tokens):", f"        return tokens.x.{better}"]
        (tmp_path / "mine_alone.py").write_text("\n".join(lines))
        sys.modules.pop("mine_alone", None)
        linecache.clearcache()
        importlib.invalidate_caches()
        method = importlib.import_module("mine_alone").Mine()
        Evaluation(host, task, {"mine": method}, counts=(8,), masses=(True,)).run(tmp_path)
    assert len(list(tmp_path.glob("parts-*/*.pt"))) == 3  # the controls and both


def test_other_scenes_are_another_evaluation(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []
    for least in (10, 2):
        monkeypatch.setattr("crtc.tasks.picture.make_scene", partial(make_scene, things=(least, 16)))
        configs.append(Evaluation(host, Glyphs("test", 1, 1), {"random": Random()}, counts=(8,)).config)
    assert {name for name in configs[0] if configs[0][name] != configs[1][name]} == {"first_picture"}


def test_digests_tell_the_order_of_weights() -> None:
    one, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    other.load_state_dict({"weight": one.weight.flip(1), "bias": one.bias})
    assert weights_digest(one) != weights_digest(other)
    other.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(other)


def test_one_label_with_and_without_the_question(host: Host, task: Task, tmp_path: Path) -> None:
    scorer = get_method("reinforced_scorer")
    for question in (True, False):
        scorer.question_aware = question
        Evaluation(host, task, {"mine": scorer}, counts=(8,), masses=(True,)).run(tmp_path)
    assert len(list(tmp_path.glob("parts-*/*.pt"))) == 3  # the controls and both


def test_any_accepted_answer_is_right(host: Host, task: Task) -> None:
    """The full model's own words are right wherever they stand in the list of answers."""
    picture = task.pictures[0]
    question = picture.questions[0]
    colors = (
        "red",
        "green",
        "blue",
        "yellow",
        "cyan",
        "magenta",
        "orange",
        "white",
        "purple",
        "pink",
        "black",
        "brown",
    )
    said = [
        Evaluation(
            host,
            Task([Picture(picture.image, (Question(question.text, answers), Question(question.text, ("nothing",))))]),
            {"random": Random()},
            counts=[576],
            masses=[True],
        ).run()
        for answers in (("nothing", *colors, *question.answers), ("nothing",))
    ]
    assert said[0].full().right.tolist() == [True, False]
    assert said[1].full().right.tolist() == [False, False]
    assert said[0].runs["random", True, 576].right.tolist() == [True, False]
    assert np.allclose(said[0].full().kl, 0)
    assert np.isnan(said[0].runs["random", True, 576].recall).all()  # no evidence was given


def test_what_a_host_cannot_give_is_skipped_with_a_reason(host: Host, task: Task, tmp_path: Path) -> None:
    methods = {"kmeans": KMeans(), "needy": Needy(), "cls": ClsAttention()}
    results = Evaluation(host, Task(task.pictures[:1]), methods, counts=[16]).run()
    assert results.labels == ("kmeans", "cls")
    assert results.skipped == {"needy": "the host gives no sonar"}
    assert "needy was skipped: the host gives no sonar." in markdown(results)
    assert save(results, tmp_path)["skipped"] == results.skipped
    with pytest.raises(ValueError, match="needy: the host gives no sonar"):
        Evaluation(host, Task(task.pictures[:1]), {"needy": Needy()}, counts=[16]).run()


@pytest.mark.parametrize(("methods", "counts"), [({}, [16]), ({"random": Random()}, [])])
def test_needs_methods_and_counts(host: Host, task: Task, methods: dict[str, Method], counts: list[int]) -> None:
    with pytest.raises(ValueError, match="expected at least one of each"):
        Evaluation(host, task, methods, counts=counts)


def test_methods_inside_the_model_spend_no_more(host: Host, task: Task) -> None:
    """At matched counts; a count that the layers in front of the cut alone exceed has no run."""
    methods: dict[str, Method] = {"fastv": FastV(), "random": Random()}
    results = Evaluation(host, Task(task.pictures[:2]), methods, counts=[192, 64], masses=[False]).run()
    assert {key for key in results.runs if key[2]} == {
        ("fastv", False, 192),
        *(("random", False, n) for n in (192, 64)),
    }
    assert results.runs["fastv", False, 192].layer_equivalent == (576 + 4 * 96) / 5 == 192
    assert results.runs["random", False, 64].layer_equivalent == 64
    assert results.full().layer_equivalent == 576 and results.runs[NO_IMAGE, False, 0].layer_equivalent == 0
    assert float(results.runs["fastv", False, 192].recall.max()) <= 1
    table = markdown(results)
    assert "| - |" in table and "| 192 / - |" in table and "| 192 / 64 |" in table
    never = Evaluation(host, Task(task.pictures[:2]), methods, counts=[64], masses=[False]).run()
    assert "fastv" in never.skipped and "in the mean over 5 layers" in never.skipped["fastv"]


def test_answers_are_generated_as_they_are_judged(host: Host, task: Task) -> None:
    """What `compressed` generates inside the model is right exactly where the teacher-forced answer is."""
    model, processor = host
    picture = task.pictures[2]
    results = Evaluation(host, Task([picture]), {"fastv": FastV()}, counts=[160], masses=[False]).run()
    for number, question in enumerate(picture.questions):
        inputs = processor(images=picture.image, text=prompt_of(processor, question.text), return_tensors="pt")
        with compressed(model, FastV(), count=160, mass=False):
            ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        said = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (said in question.answers) == bool(results.runs["fastv", False, 160].right[number]), said


def test_the_same_method_with_and_without_the_question_is_kept_apart(host: Host, task: Task, tmp_path: Path) -> None:
    methods = {"aware": get_method("reinforced_scorer"), "blind": get_method("reinforced_scorer", question=False)}
    kept = Evaluation(host, task, methods, counts=[16], masses=[True])
    fresh = kept.run()
    kept.run(tmp_path)
    same(fresh, kept.run(tmp_path))
    assert not np.array_equal(fresh.runs["aware", True, 16].kl, fresh.runs["blind", True, 16].kl)
