"""The learned scorer: files, what it looks at, its designs, and what learns."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from crtc.methods import Reinforced, get_method
from crtc.methods.reinforced_scorer import WEIGHED, Design, ReinforcedScorer
from crtc.tokens import Plan, Tokens, apply
from tests.making import make_tokens

WIDTH = 16
SMALL: dict[str, Any] = {"hidden": 16, "channels": 2, "metric": 4, "degree": 3, "reaches": (1, 2)}
DESIGNS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "rewired": {"rewired": True},
    "MLP": {"graph": False},
    "no propagation": {"steps": 0},
    "no inhibition": {"inhibition": False},
    "no merging": {"merge": False},
    "top k": {"selector": "top_k"},
    "no text edges": {"text_edges": False},
    "prior": {"prior": True, "metric": 0, "inhibition": False},
}
DESIGNS_OF_OTHER_WEIGHTS = {
    "width": 16,
    "hidden": 32,
    "channels": 4,
    "metric": 16,
    "reaches": (1,),
    "graph": False,
    "inhibition": False,
}
every_design = pytest.mark.parametrize("design", [pytest.param(design, id=name) for name, design in DESIGNS.items()])


def make(question: bool = True, seed: int = 0, **design: Any) -> ReinforcedScorer:
    """A scorer whose weights are all drawn, so that nothing is silent because it starts at zero."""
    torch.manual_seed(seed)
    scorer = ReinforcedScorer(WIDTH, question=question, **{**SMALL, **design}).eval()
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return scorer


def with_text(tokens: Tokens, seed: int) -> Tokens:
    """The same images with other words behind them."""
    other = torch.randn(tokens.x.shape, generator=torch.Generator().manual_seed(seed))
    x = torch.where(tokens.candidates[:, None], tokens.x, other)
    return Tokens(x, tokens.kind, tokens.sequence, tokens.group, tokens.grid, tokens.signals)


def same(one: Plan, other: Plan) -> bool:
    return (
        torch.equal(one.kept, other.kept)
        and torch.equal(one.slot, other.slot)
        and bool(torch.allclose(one.weight, other.weight, atol=1e-6))
    )


@pytest.fixture
def tokens() -> Tokens:
    return make_tokens([[(5, 5)], [(3, 4), (4, 4)]], num_text=5)


K = torch.tensor([6, 3, 5])


@every_design
def test_designs_keep_exactly_k(design: dict[str, Any], tokens: Tokens) -> None:
    for question in (True, False):
        plan = make(question, **design)(tokens, K)
        assert torch.equal(plan.num_kept, K)
        assert float(plan.size.sum()) == 53
        assert bool(torch.isfinite(apply(plan, tokens.x)).all())
        assert plan.merges == design.get("merge", True)


@every_design
def test_files_keep_everything(design: dict[str, Any], tokens: Tokens, tmp_path: Path) -> None:
    scorer = make(**design)
    scorer.save_pretrained(tmp_path / "scorer")
    for question in (True, False):
        scorer.question_aware = question
        read = ReinforcedScorer.from_pretrained(tmp_path / "scorer", question=question)
        assert read.design == scorer.design and read.question_aware == question and not read.training
        assert torch.equal(read.score(tokens), scorer.score(tokens))
        assert same(read(tokens, K), scorer(tokens, K))


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _lose_one(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("metric.weight")
    save_file(weights, folder / "model.safetensors")


def _break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _binary_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")


def _other_design(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["design"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES = {
    "cut weights": _cut,
    "empty weights": _empty,
    "no weights": _lose_weights,
    "a weight is missing": _lose_one,
    "no config": _lose_config,
    "broken config": _break_config,
    "config is a list": _list_config,
    "config is no text": _binary_config,
    "wider than its weights": lambda folder: _other_design(folder, hidden=32),
    "unknown field": lambda folder: _other_design(folder, depth=3),
    "field out of range": lambda folder: _other_design(folder, steps=-1),
    "field of another type": lambda folder: _other_design(folder, hidden="many"),
    "reaches is a number": lambda folder: _other_design(folder, reaches=4),
    "no width": lambda folder: _other_design(folder, width=None),
}


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in DAMAGES.items()])
def test_damaged_files(damage: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=str(tmp_path)):
        ReinforcedScorer.from_pretrained(tmp_path)


def test_another_width_names_both(tokens: Tokens) -> None:
    with pytest.raises(ValueError, match=r"16 channels.*192"):
        ReinforcedScorer(192)(tokens, K)


def test_ships_for_the_embedded_host() -> None:
    scorer = get_method("reinforced_scorer")
    assert isinstance(scorer, ReinforcedScorer) and scorer.design.width == 192 and scorer.question_aware
    blind = get_method("reinforced_scorer", question=False)
    assert not blind.question_aware
    for name, value in scorer.state_dict().items():
        assert torch.equal(value, blind.state_dict()[name])


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"hidden": 0}, "hidden is 0"),
        ({"selector": "best"}, "'best', expected one of ward, farthest, top_k"),
        ({"depth": 3}, r"\['depth'\] are no fields"),
    ],
)
def test_refuses_impossible_designs(design: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReinforcedScorer(WIDTH, **design)


@every_design
def test_blind_ignores_text_entirely(design: dict[str, Any], tokens: Tokens) -> None:
    scorer = make(False, **design)
    other = with_text(tokens, 1)
    assert torch.equal(scorer.score(tokens), scorer.score(other))
    assert same(scorer(tokens, K), scorer(other, K))
    bare = make_tokens([[(5, 5)], [(3, 4), (4, 4)]], num_text=0)
    x = tokens.x[tokens.candidates]
    bare = Tokens(x, bare.kind, bare.sequence, bare.group, bare.grid)
    torch.testing.assert_close(scorer.score(bare), scorer.score(tokens)[tokens.candidates], atol=1e-6, rtol=1e-6)


@every_design
def test_aware_depends_on_text(design: dict[str, Any], tokens: Tokens) -> None:
    scorer = make(**design)
    moved = (scorer.score(tokens) - scorer.score(with_text(tokens, 1))).abs()[tokens.candidates]
    assert float(moved.min()) > 1e-6


def test_text_order_matters_through_text_edges_alone(tokens: Tokens) -> None:
    text = (~tokens.candidates & (tokens.sequence == 0)).nonzero()[:, 0]
    x = tokens.x.clone()
    x[text] = x[text.flip(0)]
    turned = Tokens(x, tokens.kind, tokens.sequence, tokens.group, tokens.grid, tokens.signals)
    for text_edges in (True, False):
        scorer = make(text_edges=text_edges)
        moved = float((scorer.score(tokens) - scorer.score(turned)).abs().max())
        assert moved > 1e-4 if text_edges else moved < 1e-5


def test_what_each_design_changes(tokens: Tokens) -> None:
    """Steps, edges and inhibition each move the scores that the same weights give."""
    base = make().score(tokens)
    for design in ({"rewired": True}, {"steps": 0}, {"steps": 1}, {"text_edges": False}):
        assert not torch.allclose(make(**design).score(tokens), base, atol=1e-4), design
    kept = make().with_design(merge=False)(tokens, K)
    assert torch.equal(kept.kept, make()(tokens, K).kept) and not kept.merges


@every_design
def test_batch_equals_alone(design: dict[str, Any], tokens: Tokens) -> None:
    if design.get("rewired"):
        pytest.skip("its random edges are drawn for the whole batch")
    scorer = make(**design)
    together = scorer.score(tokens)
    plan = scorer(tokens, K)
    for number, k in enumerate((K[:1], K[1:])):
        inside = tokens.sequence == number
        one = tokens.select(torch.tensor([number]))
        torch.testing.assert_close(scorer.score(one), together[inside], atol=1e-5, rtol=1e-5)
        alone = scorer(one, k)
        assert torch.equal(alone.kept + int(inside.nonzero()[0, 0]), plan.kept[inside[plan.kept]])
        torch.testing.assert_close(alone.weight, plan.weight[inside], atol=1e-5, rtol=1e-5)


@every_design
@pytest.mark.parametrize("question", [True, False])
def test_identical_tokens(design: dict[str, Any], question: bool) -> None:
    tokens = make_tokens([[(6, 6)], [(2, 3)]], equal=True)
    for k in (torch.tensor([7, 2]), torch.tensor([1, 1]), torch.tensor([35, 5])):
        plan = make(question, **design)(tokens, k)
        assert torch.equal(plan.num_kept, k)
        torch.testing.assert_close(apply(plan, tokens.x), torch.ones(int(k.sum()), WIDTH), atol=1e-5, rtol=0)


@every_design
def test_every_used_weight_learns(design: dict[str, Any], tokens: Tokens) -> None:
    scorer = make(**design).train()
    said = scorer.importance(tokens)
    ((said.logit.square() + said.place.sum(-1)).sum() * said.temperature).backward()
    idle = {"share", "likeness_gain", "relation", "asked_relation.weight", "asked_relation.bias"}
    idle |= {"salience.weight", "salience.bias", "word.weight", "word.bias"}
    unused = idle if design.get("steps") == 0 else set()
    if design.get("text_edges") is False:
        unused = {"word.weight", "word.bias"} | {name for name, _ in scorer.named_parameters() if "context" in name}
    if design.get("graph") is False:
        unused = {name for name, _ in scorer.named_parameters() if "context" in name or "seed.head" in name}
    for name, parameter in scorer.named_parameters():
        moved = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        assert (moved > 0) == (name not in unused), f"{name} moves by {moved}"
        if parameter.grad is not None:
            assert bool(torch.isfinite(parameter.grad).all()), name


def test_design_is_a_value() -> None:
    assert Design(8) == Design(8) and Design(8) != Design(8, steps=1)
    scorer = make()
    assert scorer.with_design(selector="top_k").design.selector == "top_k"
    assert scorer.design.selector == "ward"
    shipped = get_method("reinforced_scorer")
    assert shipped.with_design(merge=False).origin == shipped.origin is not None
    assert DESIGNS_OF_OTHER_WEIGHTS.keys() == WEIGHED
    for name, value in DESIGNS_OF_OTHER_WEIGHTS.items():
        with pytest.raises(ValueError, match=f"^{name} cannot change"):
            scorer.with_design(**{name: value})
    with pytest.raises(ValueError, match=r"\['depth'\] are no fields of a design"):
        scorer.with_design(depth=3)


@pytest.mark.parametrize("name", sorted({field.name for field in fields(Design)} - WEIGHED))
def test_weights_fit_every_design_that_they_may_have(name: str) -> None:
    other = {"selector": "farthest", "steps": 0, "degree": 3}.get(name, not getattr(Design(WIDTH), name))
    changed = make().with_design(**{name: other})
    assert getattr(changed.design, name) == other
    assert all(torch.equal(*pair) for pair in zip(changed.parameters(), make().parameters(), strict=True))


def test_with_the_prior_it_starts_as_the_formula(tokens: Tokens) -> None:
    """Untrained, the residual is zero: the same clusters and shares as without any network, with and without text."""
    for question in (True, False):
        scorer = ReinforcedScorer(WIDTH, question=question, **SMALL | {"prior": True, "metric": 0, "inhibition": False})
        plan, expected = scorer.eval()(tokens, K), Reinforced()(tokens, K)
        assert torch.equal(plan.slot, expected.slot) and torch.equal(plan.kept, expected.kept)
        torch.testing.assert_close(plan.weight, expected.weight)
