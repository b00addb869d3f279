"""The scores are those by which PyG's own layers pool."""

import pytest
import torch
from torch.nn import functional as F

from crtc.methods import ASAPooling, SAGPooling, TopKPooling
from crtc.methods.learned import Learned
from crtc.tokens import Groups
from tests.making import make_tokens

KINDS = pytest.mark.parametrize("kind", [TopKPooling, SAGPooling, ASAPooling])


@KINDS
def test_the_layer_of_pyg_keeps_the_same(kind: type[Learned]) -> None:
    tokens = make_tokens([[(4, 5)], [(3, 4)]], num_text=0)
    torch.manual_seed(0)
    method = kind(16).eval()
    layer = method.layer
    layer.ratio = layer.select.ratio = 4  # PyG: a whole number is a count
    neighbors = method.neighbors(tokens)
    edges = torch.zeros(2, 0, dtype=torch.long) if neighbors is None else neighbors.to_edges()[0]
    answer = layer(F.layer_norm(tokens.x, (16,)), edges, batch=tokens.sequence)
    kept = answer[-1] if kind is ASAPooling else answer[-2]
    plan = method(tokens, torch.tensor([4, 4]))
    assert torch.equal(plan.kept, kept.sort().values)
    if kind is not ASAPooling:
        torch.testing.assert_close(method.score(tokens)[kept].tanh(), answer[-1])


@KINDS
def test_edges_carry_what_neighbors_say(kind: type[Learned]) -> None:
    tokens = make_tokens([[(4, 5)]])
    torch.manual_seed(0)
    method = kind(16).eval()
    before = method.score(tokens)
    tokens.x[0] = 5 * torch.randn(16)
    moved = int(((method.score(tokens) - before).abs() > 1e-6).sum())
    assert moved == 1 if kind is TopKPooling else moved > 3


def test_tokens_without_a_grid_or_company_have_a_score() -> None:
    tokens = make_tokens([[(1, 1)], [(2, 2)]])
    for kind in (TopKPooling, SAGPooling, ASAPooling):
        said = kind(16).importance(tokens)
        assert bool(torch.isfinite(said.logit).all()) and said.logit.shape == Groups.of(tokens).valid.shape


@KINDS
def test_an_untrained_score_does_not_saturate_its_gate(kind: type[Learned]) -> None:
    """Tanh has a slope where training begins."""
    tokens = make_tokens([[(8, 8)]], channels=64)
    for seed in range(3):
        torch.manual_seed(seed)
        said = kind(64).importance(tokens).logit
        assert float((1 - said.tanh().square()).mean()) > 0.3
