"""PyG and networkx see the same graph."""

from dataclasses import replace

import pytest
import torch
from torch_geometric.data import Batch, Data

from crtc.graph import from_data, to_data, to_networkx, token_graph
from tests.making import make_tokens


def test_there_and_back():
    tokens = make_tokens([[(2, 3), (1, 2)], [(3, 1)], []], num_text=2)
    batch = to_data(tokens, token_graph(tokens, degree=2))
    assert isinstance(batch, Batch) and batch.num_graphs == 3
    back = from_data(batch)
    for name in ("x", "kind", "sequence", "group", "grid"):
        assert torch.equal(getattr(back, name), getattr(tokens, name))
    assert back.signals.present == tokens.signals.present
    assert torch.equal(back.signals.keys, tokens.signals.keys)


def test_a_batch_has_the_edges_of_the_list():
    tokens = make_tokens([[(2, 3)], [(3, 1)]])
    neighbors = token_graph(tokens, degree=2)
    batch = to_data(tokens, neighbors)
    index, likeness, relation = neighbors.to_edges()
    assert torch.equal(batch.edge_index, index)
    assert torch.equal(batch.edge_attr, likeness) and torch.equal(batch.relation, relation)


def test_each_graph_numbers_its_own_nodes():
    tokens = make_tokens([[(2, 3)], [(3, 1)]], num_text=1)
    second = to_data(tokens, token_graph(tokens, degree=2))[1]
    assert second.num_nodes == 4 and int(second.edge_index.max()) == 3
    assert second.budget_group.tolist() == [0, 0, 0, -1]
    assert torch.equal(from_data(second).x, tokens.x[7:])


def test_sequences_need_not_follow_each_other():
    tokens = make_tokens([[(2, 3)], [(3, 1)]], num_text=1)
    apart = replace(tokens, sequence=2 * tokens.sequence)
    assert to_data(apart, token_graph(apart, degree=2)).num_graphs == 2


def test_from_data_refuses_what_lacks():
    with pytest.raises(ValueError, match="data lacks kind, budget_group, grid"):
        from_data(Data(x=torch.zeros(2, 2)))


def test_networkx_carries_everything():
    tokens = make_tokens([[(2, 2)]], num_text=1)
    neighbors = token_graph(tokens, degree=1)
    graph = to_networkx(tokens, neighbors, score=torch.arange(5.0))
    assert graph.nodes[3] == {"kind": 1, "group": 0, "sequence": 0, "grid": (0, 1, 1), "score": 3.0}
    assert graph.nodes[4]["group"] == -1
    index, likeness, _ = neighbors.to_edges()
    assert set(graph.edges) == set(zip(*index.tolist(), strict=True))
    for source, target, data in graph.edges(data=True):
        parallel = likeness[(index[0] == source) & (index[1] == target)]
        assert data["weight"] == float(parallel.max())
    assert graph[0][3]["relation"] in range(3, 11)  # the grid's edge is the strongest
