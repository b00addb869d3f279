import networkx as nx
import pytest
import torch

from crtc.methods import PersonalizedPageRank
from crtc.methods.personalized_page_rank import page_rank
from crtc.relevance import text_relevance
from crtc.similarity import nearest_neighbors
from crtc.tokens import Groups
from tests.making import make_image, make_tokens


@pytest.mark.parametrize("start", ["question", "uniform"])
def test_agrees_with_networkx(start: str) -> None:
    tokens = make_tokens([[(3, 4)], [(2, 3)]], channels=6)
    method = PersonalizedPageRank(start, neighbors=2, steps=200)  # type: ignore[arg-type]
    score = method.score(tokens)
    groups = Groups.of(tokens)
    edges = nearest_neighbors(groups.gather(tokens.x), groups.valid, 2)
    relevance = text_relevance(tokens, groups)
    for group in range(2):
        valid = groups.valid[group]
        graph = nx.from_numpy_array(edges[group][valid][:, valid].double().numpy())
        asked = relevance[group][valid]
        odds = dict(enumerate((asked - asked.min()).tolist())) if start == "question" else None
        expected = nx.pagerank(graph, alpha=0.85, personalization=odds, tol=1e-12, max_iter=1000)
        visits = [expected[place] for place in range(len(asked))]
        assert score[tokens.group == group].tolist() == pytest.approx(visits, abs=1e-6)


def test_two_steps_by_hand() -> None:
    edges = torch.tensor([[[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]])
    start = torch.tensor([[1.0, 0, 0]])
    # One step: (0.5, 0.5, 0). Two: half of the start again, and (0.25, 0.5, 0.25) / 2.
    assert page_rank(edges, start, damping=0.5, steps=1).tolist() == [[0.5, 0.5, 0]]
    assert page_rank(edges, start, damping=0.5, steps=2).tolist() == [[0.625, 0.25, 0.125]]


def test_question_draws_the_walk() -> None:
    tokens = make_image([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]], text=[[0.0, 1]])
    assert PersonalizedPageRank(neighbors=1)(tokens, torch.tensor([2])).kept.tolist() == [2, 3]
    uniform = PersonalizedPageRank("uniform")
    assert uniform.needs == frozenset()
    assert not uniform.question_aware


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "value"), [("start", "norm"), ("neighbors", 0), ("damping", 1.0), ("steps", -1)])
def test_refuses_impossible_settings(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        PersonalizedPageRank(**{name: value})  # type: ignore[arg-type]
