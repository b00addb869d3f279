"""The token graph as others want it: PyG `Data` and `Batch` in and out, networkx out."""

from typing import cast

import networkx
import torch
from torch_geometric.data import Batch, Data

from crtc.graph.neighbors import Neighbors, feature_neighbors, grid_neighbors, join, text_image, text_order
from crtc.tokens import CONTEXT, SIGNALS, Signals, Tokens


def token_graph(tokens: Tokens, *, degree: int = 8, reaches: tuple[int, ...] = (1,)) -> Neighbors:
    """All edges of the house: feature neighbours, grid, text-image, text order.

    Relations count on in that order: 0 feature, then the grid's directions, text to image, image to text, text offsets.
    """
    return join(
        feature_neighbors(tokens.x, tokens.group, degree),
        grid_neighbors(tokens, reaches=reaches),
        text_image(tokens),
        text_order(tokens),
    )


def to_data(tokens: Tokens, neighbors: Neighbors) -> Batch:
    """One PyG graph per sequence, as a `Batch`; `from_data` reads it back."""
    edge_index, likeness, relation = neighbors.to_edges()
    graphs = []
    for number in sorted(set(tokens.sequence.tolist())):
        nodes = (tokens.sequence == number).nonzero()[:, 0]
        first = int(nodes[0])
        inside = tokens.sequence[edge_index[1]] == number
        signals = {name: getattr(tokens.signals, name)[nodes] for name in tokens.signals.present}
        group = tokens.group[nodes]
        graphs.append(
            Data(
                x=tokens.x[nodes],
                edge_index=edge_index[:, inside] - first,
                edge_attr=likeness[inside],
                relation=relation[inside],
                kind=tokens.kind[nodes],
                budget_group=torch.where(group >= 0, group - group[group >= 0].min(), CONTEXT)
                if bool((group >= 0).any())
                else group,
                grid=tokens.grid[nodes],
                **signals,
            )
        )
    return cast(Batch, Batch.from_data_list(graphs))


def from_data(data: Data | Batch) -> Tokens:
    """The tokens of a PyG graph or batch as `to_data` writes them.

    Raises:
        ValueError: if an attribute that tokens need is missing.
    """
    missing = [name for name in ("x", "kind", "budget_group", "grid") if data.get(name) is None]
    if missing:
        raise ValueError(f"data lacks {', '.join(missing)}, expected the attributes that to_data writes")
    sequence = data.batch if data.get("batch") is not None else data.kind.new_zeros(len(data.x))
    group = data.budget_group.clone()
    inside = group >= 0
    if bool(inside.any()):
        fresh = torch.ones(int(inside.sum()), dtype=torch.bool, device=group.device)
        fresh[1:] = (group[inside].diff() != 0) | (sequence[inside].diff() != 0)
        group[inside] = fresh.cumsum(0) - 1
    signals = Signals(**{name: data[name] for name in SIGNALS if data.get(name) is not None})
    return Tokens(data.x, data.kind, sequence, group, data.grid, signals)


def to_networkx(tokens: Tokens, neighbors: Neighbors, **node_values: torch.Tensor) -> networkx.DiGraph:
    """The graph for analysis and drawing: nodes carry kind, group, sequence, grid and any `node_values` given, edges
    their likeness as `weight` and their `relation`; of several edges from one token to another the heaviest stays.
    """
    graph = networkx.DiGraph()
    for node in range(len(tokens)):
        extra = {name: float(value[node]) for name, value in node_values.items()}
        graph.add_node(
            node,
            kind=int(tokens.kind[node]),
            group=int(tokens.group[node]),
            sequence=int(tokens.sequence[node]),
            grid=tuple(tokens.grid[node].tolist()),
            **extra,
        )
    edge_index, likeness, relation = neighbors.to_edges()
    for source, target, weight, number in zip(*edge_index.tolist(), likeness.tolist(), relation.tolist(), strict=True):
        if not graph.has_edge(source, target) or graph[source][target]["weight"] < weight:
            graph.add_edge(source, target, weight=weight, relation=number)
    return graph
