import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as Reference

from crtc.clustering import k_means, k_means_plus_plus
from crtc.methods import KMeans, KMeansMedoid, KMeansSpherical
from crtc.tokens import apply
from tests.making import make_image, make_tokens


def line(*values: float) -> list[list[float]]:
    return [[value, 1.0] for value in values]


def test_two_clusters_on_a_line() -> None:
    tokens = make_image(line(0, 10, 1, 12, 5 / 4, 11))
    plan = KMeans()(tokens, torch.tensor([2]))
    assert plan.kept.tolist() == [2, 5]
    assert plan.slot.tolist() == [0, 1, 0, 1, 0, 1]
    assert apply(plan, tokens.x)[:, 0].tolist() == pytest.approx([0.75, 11])
    assert plan.size.tolist() == [3, 3]


def test_medoid_leaves_the_token_as_it_is() -> None:
    tokens = make_image(line(0, 10, 1, 12, 5 / 4, 11))
    plan = KMeans("medoid")(tokens, torch.tensor([2]))
    assert not plan.merges
    assert torch.equal(apply(plan, tokens.x), tokens.x[[2, 5]])
    assert plan.size.tolist() == [3, 3]


def test_metrics_differ() -> None:
    # Two rays with a short and a long token each: lengths part them one way, directions the other.
    tokens = make_image([[1.0, 0], [100, 1], [0.1, 1], [2, 100]])
    assert KMeans(metric="spherical")(tokens, torch.tensor([2])).slot.tolist() == [0, 0, 1, 1]
    assert KMeans()(tokens, torch.tensor([3])).slot.tolist() == [0, 1, 0, 2]


def test_rows_of_their_own() -> None:
    tokens, k = make_tokens([[(5, 5)]]), torch.tensor([6])
    for row, same in ((KMeansSpherical(), KMeans(metric="spherical")), (KMeansMedoid(), KMeans("medoid"))):
        assert torch.equal(row(tokens, k).slot, same(tokens, k).slot)
        assert torch.equal(row(tokens, k).weight, same(tokens, k).weight)
    assert repr(KMeansMedoid()) == "KMeansMedoid(metric='euclidean', seed=0, iterations=20, tolerance=0.0001)"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("metric", ["euclidean", "spherical"])
def test_finds_separated_blobs(seed: int, metric: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    blob = torch.arange(60) % 6
    x = 10 * torch.eye(6, 8)[blob] + 0.3 * torch.randn(60, 8, generator=generator)
    slot = KMeans(metric=metric, seed=seed)(make_image(x), torch.tensor([6])).slot  # type: ignore[arg-type]
    pairs = set(zip(slot.tolist(), blob.tolist(), strict=True))
    assert len(pairs) == 6


def test_is_as_good_as_the_reference() -> None:
    tokens = make_tokens([[(12, 12)]], num_text=0)
    plan = KMeans(iterations=100)(tokens, torch.tensor([16]))
    spread = float((tokens.x - apply(plan, tokens.x)[plan.slot]).square().sum())
    reference = [Reference(16, n_init=1, random_state=seed).fit(tokens.x.numpy()).inertia_ for seed in range(5)]
    assert spread < 1.05 * np.max(reference)


def test_copies_still_give_k_clusters() -> None:
    x = torch.ones(2, 6, 3)
    x[1, :2] = 5
    valid = torch.tensor([[True] * 6, [True] * 5 + [False]])
    owner = k_means(x, valid, torch.tensor([4, 3]))
    kept = owner == torch.arange(6)
    assert kept.sum(1).tolist() == [4, 3]
    assert int(owner[1, 5]) == -1
    # The pair of fives never joins the ones.
    assert set(owner[1, :2].tolist()) <= {0, 1}
    assert set(owner[1, 2:5].tolist()) <= {2, 3, 4}


def test_starts_are_different_tokens() -> None:
    x = torch.zeros(1, 5, 2)
    x[0, 3] = 1
    first = k_means_plus_plus(x, torch.ones(1, 5, dtype=torch.bool), torch.tensor([5]), seed=0)
    assert sorted(first[0].tolist()) == [0, 1, 2, 3, 4]
    # The second one is drawn by distance, so it is the token that differs, or that was first.
    assert 3 in first[0, :2].tolist()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value"), [("form", "sum"), ("metric", "cosine"), ("iterations", -1), ("tolerance", -1.0)]
)
def test_refuses_unknown_settings(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        KMeans(**{name: value})  # type: ignore[arg-type]
