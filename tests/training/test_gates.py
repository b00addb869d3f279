"""What a count, which has no gradient, becomes in training."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from crtc.methods import trainable
from crtc.methods.reinforced_scorer import Placed, ReinforcedScorer
from crtc.selection import top_k
from crtc.tokens import Plan, Tokens, apply
from crtc.training.gates import FAINT, GATES, Gate, assignment, mask, noise, pool, scale, soft_top_k
from tests.making import make_tokens

GRIDS = [[(4, 5)], [(3, 3), (2, 4)]]
K = torch.tensor([6, 3, 2])


@pytest.fixture
def tokens() -> Tokens:
    return make_tokens(GRIDS)


@pytest.fixture(params=["ward", "farthest"])
def scorer(request: pytest.FixtureRequest) -> ReinforcedScorer:
    torch.manual_seed(0)
    return ReinforcedScorer(16, hidden=16, channels=2, metric=4, degree=3, reaches=(1,), selector=request.param)


def leaf(said: Placed) -> Placed:
    """The same importance as a start of gradients."""
    return replace(said, logit=said.logit.detach().requires_grad_(), place=said.place.detach().clone().requires_grad_())


def run(gate: Gate, scorer: ReinforcedScorer, tokens: Tokens, progress: float = 0.5) -> tuple[Placed, Plan, Tensor]:
    said = leaf(scorer.importance(tokens))
    through = gate(scorer, said, tokens, K, progress, torch.Generator().manual_seed(0))
    return said, through.plan, through.rows


def test_the_hard_forward_is_the_deployed_plan(scorer: ReinforcedScorer, tokens: Tokens) -> None:
    _, plan, rows = run(assignment, scorer, tokens)
    deployed = scorer(tokens, K)
    assert torch.equal(plan.kept, deployed.kept) and torch.equal(plan.slot, deployed.slot)
    torch.testing.assert_close(plan.size, deployed.size)
    torch.testing.assert_close(rows, apply(deployed, tokens.x))
    assert plan.size.requires_grad and not deployed.size.requires_grad


def test_exact_copies_own_themselves(scorer: ReinforcedScorer) -> None:
    copies = make_tokens(GRIDS, equal=True)
    _, plan, rows = run(assignment, scorer, copies)
    torch.testing.assert_close(plan.size, scorer(copies, K).size)
    torch.testing.assert_close(rows, torch.ones(11, 16))


@pytest.mark.parametrize("name", sorted(set(GATES) - {"pool"}))
def test_dropped_tokens_get_gradient(name: str, scorer: ReinforcedScorer, tokens: Tokens) -> None:
    said, plan, rows = run(GATES[name], scorer, tokens)
    random = torch.Generator().manual_seed(1)
    read = (rows * torch.randn(rows.shape, generator=random)).sum()  # the language model reads content and mass
    (read + (plan.size * torch.randn(plan.size.shape, generator=random)).sum()).backward()
    assert said.logit.grad is not None
    chosen = top_k(said.logit.detach(), said.groups.valid, K)
    if name == "assignment":
        chosen = torch.isin(said.groups.index, plan.kept)
    dropped = said.groups.valid & ~chosen
    assert int(dropped.sum()) == 37 - 11
    assert bool((said.logit.grad[dropped].abs() > 1e-7).all())
    assert bool((said.logit.grad[~said.groups.valid] == 0).all())


def test_the_metric_learns_from_content_and_from_mass(scorer: ReinforcedScorer, tokens: Tokens) -> None:
    for part in ("rows", "size"):
        said, plan, rows = run(assignment, scorer, tokens)
        value = rows if part == "rows" else plan.size
        (value * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        assert said.place.grad is not None
        moved = said.place.grad[said.groups.valid].norm(dim=-1)
        assert bool((moved > 0).all()), part
        assert bool((said.place.grad[~said.groups.valid] == 0).all())


def test_gradient_reaches_the_weights(scorer: ReinforcedScorer, tokens: Tokens) -> None:
    through = assignment(scorer, scorer.importance(tokens), tokens, K, 0.0, torch.Generator())
    (through.rows.square().sum() + through.plan.size.log().sum()).backward()
    for name in ("metric.weight", "log_temperature", "head.1.weight", "gain"):
        gradient = scorer.get_parameter(name).grad
        assert gradient is not None and float(gradient.norm()) > 0, name


def test_mask_weighs_the_top_k_and_nothing_else(scorer: ReinforcedScorer, tokens: Tokens) -> None:
    _said, plan, rows = run(mask, scorer, tokens)
    heavy = plan.size > 0.5
    assert torch.bincount(tokens.group[plan.kept][heavy], minlength=3).equal(K)
    torch.testing.assert_close(plan.size[~heavy], torch.full_like(plan.size[~heavy], FAINT))
    assert torch.equal(rows, tokens.x[tokens.candidates])


def test_noise_keeps_every_token(scorer: ReinforcedScorer, tokens: Tokens) -> None:
    _, plan, rows = run(noise, scorer, tokens)
    inside = tokens.candidates.nonzero()[:, 0]
    assert torch.equal(plan.kept, inside)
    assert torch.equal(plan.size, torch.ones(len(inside)))
    assert rows.shape == (len(inside), 16)


def test_noise_ends_where_the_choice_is_clear(scorer: ReinforcedScorer, tokens: Tokens) -> None:
    said = scorer.importance(tokens)
    order = said.logit.masked_fill(~said.groups.valid, -1e9).argsort(1, descending=True).argsort(1)
    chosen = (order < K[:, None]) & said.groups.valid
    clear = replace(said, logit=torch.where(chosen, 40.0, -40.0))
    rows = noise(scorer, clear, tokens, K, 1.0, torch.Generator().manual_seed(0)).rows
    kept = chosen[said.groups.valid]
    x = tokens.x[tokens.candidates]
    torch.testing.assert_close(rows[kept], x[kept], atol=2e-2, rtol=2e-2)
    assert float((rows[~kept] - x[~kept]).norm(dim=1).min()) > 1.0
    # as strong as what it stands for, so that a norm does not give it away
    assert float(rows[~kept].square().mean() / x.square().mean()) == pytest.approx(1.0, abs=0.4)


def test_scale_shrinks_what_it_drops_and_its_penalty_asks_for_a_clear_choice(
    scorer: ReinforcedScorer, tokens: Tokens
) -> None:
    said = scorer.importance(tokens)
    through = [scale(scorer, said, tokens, K, progress, torch.Generator()) for progress in (0.0, 1.0)]
    share = soft_top_k(said.logit, said.groups.valid, K)[said.groups.valid]
    torch.testing.assert_close(through[0].rows, share[:, None] * tokens.x[tokens.candidates])
    low, high = (float(torch.as_tensor(one.penalty).detach()) for one in through)
    assert low > 0 and high == pytest.approx(20 * low, rel=1e-4)
    order = said.logit.masked_fill(~said.groups.valid, -1e9).argsort(1, descending=True).argsort(1)
    clear = replace(said, logit=torch.where(order < K[:, None], 40.0, -40.0))
    sure = scale(scorer, clear, tokens, K, 1.0, torch.Generator())
    assert float(sure.penalty) < 1e-3
    torch.testing.assert_close(sure.rows.abs().sum(1).gt(0.1).sum(), K.sum())


@pytest.mark.parametrize("name", sorted(set(trainable()) - {"reinforced_scorer"}))
def test_pool_reads_the_deployed_rows_and_teaches_kept_tokens_alone(name: str, tokens: Tokens) -> None:
    torch.manual_seed(0)
    peer = trainable()[name].for_width(16)
    said = peer.importance(tokens)
    said = replace(said, logit=said.logit.detach().requires_grad_())
    through = pool(peer, said, tokens, K, 0.5, torch.Generator())
    deployed = peer.eval()(tokens, K)
    assert torch.equal(through.plan.kept, deployed.kept)
    torch.testing.assert_close(through.rows, apply(deployed, tokens.x))
    through.rows.square().sum().backward()
    assert said.logit.grad is not None
    learns = (said.logit.grad != 0)[said.groups.valid]
    assert torch.equal(tokens.candidates.nonzero()[:, 0][learns], deployed.kept)


def padded(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(3, 7, generator=generator, dtype=torch.float64) * 3
    valid = torch.arange(7) < torch.tensor([[7], [4], [5]])
    return score, valid, torch.tensor([3, 1, 4])


def test_soft_top_k_sums_to_k() -> None:
    score, valid, k = padded()
    share = soft_top_k(score, valid, k)
    torch.testing.assert_close(share.sum(1), k.double(), atol=1e-9, rtol=0)
    assert bool((share[~valid] == 0).all())
    assert torch.equal(share[valid].argsort(), (share[valid]).argsort())
    for row in range(3):  # in the order of the scores
        assert torch.equal(share[row, valid[row]].argsort(), score[row, valid[row]].argsort())
    shifted = soft_top_k(score + 5, valid, k)
    torch.testing.assert_close(shifted, share, atol=1e-9, rtol=0)


def test_soft_top_k_of_large_scores_is_top_k() -> None:
    score, valid, k = padded()
    share = soft_top_k(1000 * score, valid, k)
    torch.testing.assert_close(share, share.round(), atol=1e-6, rtol=0)


def test_soft_top_k_gradient() -> None:
    score, valid, k = padded()
    weight = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(value: Tensor) -> Any:
        return (soft_top_k(value, valid, k) * weight).sum(1)

    assert torch.autograd.gradcheck(loss, score.requires_grad_(), eps=1e-6, atol=1e-6)
