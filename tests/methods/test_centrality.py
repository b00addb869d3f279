import networkx as nx
import numpy as np
import pytest
from torch.nn import functional as F

from crtc.methods import DegreeCentrality, EigenvectorCentrality
from tests.making import make_golden


@pytest.mark.parametrize("sign", [1, -1])
def test_equal_networkx(sign: int) -> None:
    tokens = make_golden(5, rows=5, columns=5)
    unit = F.normalize(tokens.x[tokens.candidates], dim=-1).double()
    graph = nx.from_numpy_array((unit @ unit.T).clamp(min=0).numpy())
    degree = np.array([value for _, value in graph.degree(weight="weight")])
    eigen = np.array(list(nx.eigenvector_centrality_numpy(graph, weight="weight").values()))
    loops = 1  # networkx counts a loop twice in the degree of a node
    mine = DegreeCentrality(sign=sign).score(tokens)[tokens.candidates].numpy()
    np.testing.assert_allclose(sign * mine, degree - loops, rtol=1e-5)
    mine = EigenvectorCentrality(sign=sign, iterations=100).score(tokens)[tokens.candidates].numpy()
    np.testing.assert_allclose(sign * mine, abs(eigen), rtol=1e-4)


def test_refuse_impossible_settings() -> None:
    with pytest.raises(ValueError, match="0"):
        DegreeCentrality(sign=0)
    with pytest.raises(ValueError, match="-3"):
        EigenvectorCentrality(iterations=-3)
