import numpy as np
import pytest
import torch
from sklearn.manifold import spectral_embedding as reference

from crtc.methods import SpectralClustering
from crtc.methods.spectral_clustering import spectral_embedding
from crtc.similarity import nearest_neighbors
from crtc.tokens import Groups, apply
from tests.making import make_image, make_tokens
from tests.methods.test_louvain import blobs


@pytest.mark.parametrize("seed", range(3))
def test_finds_separated_blobs(seed: int) -> None:
    x, blob = blobs(5, 10, seed)
    plan = SpectralClustering(neighbors=4, seed=seed)(make_image(x), torch.tensor([5]))
    assert len(set(zip(plan.slot.tolist(), blob.tolist(), strict=True))) == 5
    torch.testing.assert_close(apply(plan, x), torch.stack([x[plan.slot == k].mean(0) for k in range(5)]))


def test_follows_a_ring_where_means_cannot() -> None:
    # A ring around a dot in the plane, lifted so that cosines see the plane: the dot is no part of the ring.
    angle = torch.arange(24) * 2 * torch.pi / 24
    ring = torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 1.0)], 1)
    dot = torch.tensor([[0.05, 0, 1], [-0.05, 0, 1], [0, 0.05, 1], [0, -0.05, 1]])
    plan = SpectralClustering(neighbors=2)(make_image(torch.cat([ring, dot])), torch.tensor([2]))
    assert plan.slot.tolist() == [plan.slot[0].item()] * 24 + [plan.slot[-1].item()] * 4
    assert sorted(plan.size.tolist()) == [4, 24]


def test_embedding_spans_what_scikit_learns_does() -> None:
    tokens = make_tokens([[(5, 6)]], num_text=0)
    groups = Groups.of(tokens)
    edges = nearest_neighbors(groups.gather(tokens.x), groups.valid, 8)
    rows = spectral_embedding(edges, groups.valid, torch.tensor([4]))[0]
    found = reference(edges[0].double().numpy(), n_components=4, drop_first=False, random_state=0)
    # scikit-learn divides by the root of the degrees, which the length of one takes out again
    expected = found / np.linalg.norm(found, axis=1, keepdims=True)
    torch.testing.assert_close(rows @ rows.T, torch.tensor(expected @ expected.T).float(), atol=1e-4, rtol=0)


def test_padding_does_not_change_the_embedding() -> None:
    edges, valid = torch.zeros(2, 6, 6), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    edges[:, :4, :4] = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    edges = edges + edges.transpose(1, 2)
    edges[0, 4:] = edges[0, :, 4:] = 0.5
    rows = spectral_embedding(edges, valid, torch.tensor([6, 2]))
    alone = spectral_embedding(edges[1:, :4, :4], valid[1:, :4], torch.tensor([2]))
    torch.testing.assert_close(rows[1, :4, :2] @ rows[1, :4, :2].T, alone[0] @ alone[0].T)
    assert not rows[1, 4:].any() and not rows[1, :, 2:].any()


def test_tokens_without_edges_are_parts_of_their_own() -> None:
    plan = SpectralClustering(neighbors=1)(make_image([[1.0, 0], [1, 0.1], [-1, -1]]), torch.tensor([2]))
    assert plan.slot.tolist() == [0, 0, 1]


@pytest.mark.usefixtures("unchecked")
def test_refuses_no_neighbors() -> None:
    with pytest.raises(ValueError, match="neighbors is 0"):
        SpectralClustering(neighbors=0)
