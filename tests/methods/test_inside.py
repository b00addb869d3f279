"""Methods inside the language model: schedules, and choices by hand."""

import math

import pytest
import torch

from crtc.methods import DART, PACT, FastV, PyramidDrop, SparseVLM
from crtc.methods.dart import least_like
from crtc.methods.inside import attention_paid, last_of, text_behind
from crtc.methods.sparsevlm import raters, split_of
from crtc.tokens import CONTEXT, IMAGE, TEXT, Signals, Tokens, apply

N = torch.tensor([576])


def tokens_of(
    queries: list[float], keys: list[float], *, states: list[list[float]] | None = None, visual: int = 4
) -> Tokens:
    """One word, an image, words behind it; one head of one channel."""
    num = len(queries)
    kind = torch.tensor([TEXT] + [IMAGE] * visual + [TEXT] * (num - visual - 1))
    x = torch.eye(num) if states is None else torch.tensor(states)
    asked, seen = (torch.tensor(one)[:, None, None] for one in (queries, keys))
    signals = Signals(
        layer_queries=asked, layer_keys=seen, plain_queries=asked, plain_keys=seen, normed_states=x, embeddings=x
    )
    grid = torch.full((num, 3), -1)
    grid[1 : visual + 1] = torch.tensor([[0, 0, place] for place in range(visual)])
    group = torch.where(kind == IMAGE, 0, CONTEXT)
    return Tokens(x, kind, torch.zeros(num, dtype=torch.long), group, grid, signals)


QUERIES, KEYS = [0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 1.0], [0.0, 1.0, 3.0, 2.0, 0.0, 0.0, 0.0]


def test_attention_is_causal_and_a_mean() -> None:
    tokens = tokens_of(QUERIES, KEYS)
    total = 4 + math.e + math.e**2 + math.e**3
    expected = [1 / total, math.e / total, math.e**3 / total, math.e**2 / total, *[1 / total] * 3]
    assert torch.allclose(attention_paid(tokens, last_of(tokens)), torch.tensor(expected))
    everyone = attention_paid(tokens, torch.ones(7, dtype=torch.bool))
    assert math.isclose(float(everyone.sum()), 1, rel_tol=1e-6)
    before = 3 + math.exp(-1) + math.exp(-2) + math.exp(-3)  # what the sixth token divides by
    rows = sum(1 / n for n in range(3, 6))
    assert math.isclose(float(everyone[2]), (rows + math.exp(-3) / before + math.e**3 / total) / 7, rel_tol=1e-5)


@pytest.mark.parametrize("method", [FastV(), PyramidDrop()])
def test_the_most_attended_stay(method: FastV) -> None:
    plan = method(tokens_of(QUERIES, KEYS), torch.tensor([2]))
    assert plan.kept.tolist() == [2, 3]


def test_fastv_as_the_paper_has_it() -> None:
    """The first visual token is seen by most; the last token alone would prefer the second."""
    tokens = tokens_of([0.0] * 7, [0.0] * 7)
    assert FastV(asking="all")(tokens, torch.tensor([1])).kept.tolist() == [1]
    with pytest.raises(ValueError, match="asking is 'first'"):
        FastV(asking="first")  # type: ignore[arg-type]


def test_schedules() -> None:
    assert FastV().cuts(32) == (2,) and FastV().cuts(5) == (1,) and FastV().cuts(40) == (2,)
    assert PyramidDrop().cuts(32) == (8, 16, 24) and PyramidDrop().cuts(40) == (10, 20, 30)
    assert SparseVLM().cuts(32) == (3, 7, 16) and SparseVLM().cuts(5) == (1, 2, 3)
    assert PACT().cuts(32) == (4,) and DART().cuts(32) == (2,)
    assert FastV(layers=[3]).cuts(5) == (3,)
    published = PyramidDrop(matched=False).cut_counts(torch.tensor([72]), N, 32)
    assert published[:, 0].tolist() == [288, 144, 72]
    assert SparseVLM(matched=False).cut_counts(torch.tensor([110]), N, 32)[:, 0].tolist() == [300, 200, 110]
    assert FastV().cut_counts(torch.tensor([96]), N, 32).tolist() == [[64]]
    assert FastV().cut_counts(N, N, 32).tolist() == [[576]]
    with pytest.raises(ValueError, match="target of group 0 is 16"):
        FastV().cut_counts(torch.tensor([16]), N, 32)
    with pytest.raises(ValueError, match=r"layers is \[2\], expected 3 of them"):
        PyramidDrop(layers=[2])
    with pytest.raises(ValueError, match=r"layers is \[0\], expected ascending"):
        FastV(layers=[0])


def test_raters_are_the_words_that_look_at_the_image() -> None:
    states = [[9.0, 0.0], *[[1.0, 0.0]] * 4, [2.0, 0.0], [0.0, 5.0]]
    tokens = tokens_of(QUERIES, KEYS, states=states)
    assert text_behind(tokens).tolist() == [False] * 5 + [True, True]
    assert raters(tokens).tolist() == [False] * 5 + [True, False]


def test_sparsevlm_keeps_what_the_raters_look_at() -> None:
    """The rater's query is -1: it looks where keys are low, the last token where they are high."""
    states = [[9.0, 0.0], *[[1.0, 0.0]] * 4, [2.0, 0.0], [0.0, 5.0]]
    tokens = tokens_of(QUERIES, KEYS, states=states)
    assert SparseVLM(recycle=False)(tokens, torch.tensor([2])).kept.tolist() == [1, 4]


@pytest.mark.parametrize("size", [4, 9, 100, 576])
def test_kept_and_clusters_are_k(size: int) -> None:
    for k in range(1, size):
        best, recycled, clusters = split_of(size, k)
        assert best + clusters == k and best >= 1 and best + recycled <= size
        if clusters:  # as the code counts them
            assert recycled == int((size - best) * 0.3) + 1 and clusters == int(recycled / 10) + 1
    assert split_of(size, size) == (size, 0, 0)
    assert split_of(576, 309) == (300, 83, 9)


def test_sparsevlm_recycles_the_best_of_the_deleted() -> None:
    """Of 4 tokens one stays, int(3 * 0.3) + 1 = 1 of the others is a cluster of its own: the second best."""
    states = [[9.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4], [2.0, 0.0], [0.0, 5.0]]
    tokens = tokens_of(QUERIES, KEYS, states=states)
    plan = SparseVLM()(tokens, torch.tensor([2]))
    assert plan.kept.tolist() == [1, 4] and plan.size.sum() == 4
    assert torch.equal(apply(plan, tokens.x), tokens.x[[1, 4]])


def test_dart_takes_what_is_least_like_each_pivot() -> None:
    unit = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0], [0.1, 0.9]])
    kept = least_like(unit, torch.tensor([True, False, False, False, False]), unit[[0, 2]], 3)
    assert kept.tolist() == [True, True, False, True, False]  # -1 for the first pivot, then 0.1 for the second
    states = torch.eye(7).tolist()
    states[2] = [0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    tokens = tokens_of(QUERIES, [0.0, 5.0, 1.0, 1.0, 1.0, 0.0, 0.0], states=states)
    assert DART(image_pivots=1, text_pivots=0)(tokens, torch.tensor([2])).kept.tolist() == [1, 2]
    with pytest.raises(ValueError, match="image_pivots is 0 and text_pivots 0"):
        DART(image_pivots=0, text_pivots=0)


def test_pact_prunes_then_clusters() -> None:
    """Two pairs of equal keys among the important; the mean query prefers large keys, the norm of a state counts."""
    tokens = tokens_of([0.0] + [1.0] * 4 + [0.0, 0.0], [0.0, 3.0, 2.9, -2.0, -2.0, 0.0, 0.0])
    plan = PACT(share=1.0)(tokens, torch.tensor([2]))
    assert plan.kept.tolist() == [1, 3] and plan.size.tolist() == [2, 2]
    assert torch.allclose(apply(plan, tokens.x)[0], (tokens.x[1] + tokens.x[2]) / 2)
    pruned = PACT(share=0.5, recovery=0.0)(tokens, torch.tensor([1]))
    assert pruned.kept.tolist() == [1] and pruned.weight.tolist() == [0, 0.5, 0.5, 0, 0, 0, 0]
    for settings in ({"share": 0.0}, {"cutoff": 3.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            PACT(**settings)
