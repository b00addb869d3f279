import networkx
import pytest
import torch

from crtc.methods import Louvain
from crtc.methods.louvain import join
from crtc.similarity import nearest_neighbors
from crtc.tokens import Groups, apply
from tests.making import make_golden, make_image


def blobs(num: int, each: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    blob = torch.arange(num * each) % num
    return 10 * torch.eye(num, 8)[blob] + 0.3 * torch.randn(num * each, 8, generator=generator), blob


@pytest.mark.parametrize("seed", range(3))
def test_finds_separated_blobs(seed: int) -> None:
    x, blob = blobs(5, 10, seed)
    tokens = make_image(x)
    plan = Louvain(neighbors=4, seed=seed)(tokens, torch.tensor([5]))
    assert len(set(zip(plan.slot.tolist(), blob.tolist(), strict=True))) == 5
    torch.testing.assert_close(apply(plan, x), torch.stack([x[plan.slot == k].mean(0) for k in range(5)]))


def test_joins_the_pair_that_adds_most_modularity() -> None:
    # Two triangles with a bridge: every greedy step is compared with the modularity that networkx computes.
    graph = networkx.Graph([(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5), (2, 3)])
    edges = torch.tensor(networkx.to_numpy_array(graph, nodelist=range(6)))[None]
    valid = torch.ones(1, 6, dtype=torch.bool)
    label = torch.arange(6)[None]
    for k in range(5, 1, -1):
        label = join(edges, label, valid, torch.tensor([k]), 1.0)
        parts = [{i for i in range(6) if label[0, i] == name} for name in set(label[0].tolist())]
        assert len(parts) == k
    assert label.tolist() == [[0, 0, 0, 3, 3, 3]]
    assert networkx.community.modularity(graph, parts) == pytest.approx(6 / 7 - 1 / 2)


def test_begins_with_the_coarsest_level_that_has_enough() -> None:
    tokens = make_golden(0)
    groups = Groups.of(tokens)
    edges = nearest_neighbors(groups.gather(tokens.x), groups.valid, 8)[0]
    graph = networkx.from_numpy_array(edges.double().numpy())
    levels = [len(level) for level in networkx.community.louvain_partitions(graph, seed=0)]
    assert [len(Louvain().communities(edges, least)) for least in levels] == levels
    finer = Louvain().communities(edges, levels[0] + 1)
    twice = networkx.community.louvain_partitions(graph, resolution=2, seed=0)
    assert finer in list(twice)
    assert len(finer) > levels[0]
    assert Louvain().communities(edges, 144) == [{place} for place in range(144)]


def test_without_edges_tokens_are_joined_in_order() -> None:
    tokens = make_image(torch.zeros(4, 2))
    plan = Louvain()(tokens, torch.tensor([2]))
    assert plan.size.tolist() == [3, 1]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "value"), [("neighbors", 0), ("resolution", 0.0)])
def test_refuses_impossible_settings(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Louvain(**{name: value})  # type: ignore[arg-type]
