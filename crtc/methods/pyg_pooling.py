"""Graph pooling off the shelf: the scores of PyG's pooling layers on the token graph, trained through a frozen host."""

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch_geometric import nn as pyg
from torch_geometric.utils import add_remaining_self_loops, scatter, softmax

from crtc.graph.neighbors import RING, Neighbors, feature_neighbors, grid_neighbors, join
from crtc.methods.learned import Importance, Learned
from crtc.tokens import Groups, Tokens


class _Pooling(Learned):
    """What the three share: layer-normed tokens as nodes, feature and grid neighbours as edges, none to text.

    Args:
        width: channels of the host's embedding space.
        degree: feature neighbours of a token.

    Raises:
        ValueError: if a number is less than 1.
    """

    licence = "MIT"
    place = "in a graph network"

    def __init__(self, width: int, *, degree: int = 8):
        super().__init__(width)
        if min(width, degree) < 1:
            raise ValueError(f"width is {width} and degree {degree}, expected at least 1")
        self.width, self.degree = width, degree

    def neighbors(self, tokens: Tokens) -> Neighbors | None:
        """Feature and grid neighbours."""
        return join(feature_neighbors(tokens.x, tokens.group, self.degree), grid_neighbors(tokens))

    def importance(self, tokens: Tokens, neighbors: Neighbors | None = None) -> Importance:
        """The layer's score before its non-linearity, which keeps the order."""
        self.check_width(tokens, self.width)
        found = self.neighbors(tokens) if neighbors is None else neighbors
        edge_index = (
            torch.zeros(2, 0, dtype=torch.long, device=tokens.x.device) if found is None else found.to_edges()[0]
        )
        groups = Groups.of(tokens)
        return Importance(groups, groups.gather(self.rate(F.layer_norm(tokens.x.float(), (self.width,)), edge_index)))

    @abstractmethod
    def rate(self, x: Float[Tensor, "N D"], edge_index: Int[Tensor, "2 E"]) -> Float[Tensor, " N"]:
        """Score of every node."""


class TopKPooling(_Pooling):
    """x . p / |p| with a learned direction p: a linear score of each token, without edges.

    Train it through the gate `pool`, in which as in PyG only kept tokens learn, or another one. Deviations, as in the
    two others: kept tokens are not multiplied by their score at use, since a frozen host was not trained on that;
    dropped tokens give their mass to the kept token most like them.

    Args:
        width: channels of the host's embedding space.

    Raises:
        ValueError: if the width is less than 1.
    """

    source = "TopKPooling of PyG, Gao and Ji 2019 (Graph U-Nets)"

    def __init__(self, width: int):
        super().__init__(width)
        self.layer = pyg.TopKPooling(width)

    def neighbors(self, tokens: Tokens) -> Neighbors | None:
        """None: the score has no edges."""
        return None

    def rate(self, x: Float[Tensor, "N D"], edge_index: Int[Tensor, "2 E"]) -> Float[Tensor, " N"]:
        """Length of the tokens along p."""
        weight: Tensor = self.layer.select.weight
        length: Tensor = torch.linalg.vector_norm(weight, dim=-1)
        return (x * weight).sum(-1) / length


class SAGPooling(_Pooling):
    """One graph convolution to one channel: what a token and the mean of its neighbours say, linearly.

    Trained as `TopKPooling`. Deviations: those of `TopKPooling`; a mean where the layer sums, since the sum of sixteen
    neighbours saturates the gate's tanh and nothing learns.

    Args:
        width: channels of the host's embedding space.
        degree: feature neighbours of a token.

    Raises:
        ValueError: if a number is less than 1.
    """

    source = "SAGPooling of PyG, Lee et al. 2019"

    def __init__(self, width: int, *, degree: int = 8):
        super().__init__(width, degree=degree)
        self.layer = pyg.SAGPooling(width, aggr="mean")

    def rate(self, x: Float[Tensor, "N D"], edge_index: Int[Tensor, "2 E"]) -> Float[Tensor, " N"]:
        """The convolution, with the sign of the layer's own weight."""
        weight: Tensor = self.layer.select.weight
        said: Tensor = self.layer.gnn(x, edge_index)
        length: Tensor = torch.linalg.vector_norm(weight, dim=-1)
        return (said * weight).sum(-1) / length


class ASAPooling(_Pooling):
    """Fitness of every token's ego-net, pooled by attention, against its neighbours' by a local-extremum convolution.

    Trained as `TopKPooling`. Deviations: those of `TopKPooling`; a kept token keeps its own content, not that of its
    ego-net, whose members are other kept tokens as well; the layer's last weight, which never learns and whose sign may
    turn the order around, is left out.

    Args:
        width: channels of the host's embedding space.
        degree: feature neighbours of a token.

    Raises:
        ValueError: if a number is less than 1.
    """

    source = "ASAPooling of PyG, Ranjan et al. 2020"

    def __init__(self, width: int, *, degree: int = 8):
        super().__init__(width, degree=degree)
        self.layer = pyg.ASAPooling(width)

    def rate(self, x: Float[Tensor, "N D"], edge_index: Int[Tensor, "2 E"]) -> Float[Tensor, " N"]:
        """Fitness before the sigmoid: the first half of the layer's own forward pass."""
        layer = self.layer
        edge_index, _ = add_remaining_self_loops(edge_index, num_nodes=len(x))
        source, target = edge_index
        query = layer.lin(scatter(x[source], target, dim=0, dim_size=len(x), reduce="max"))[target]
        likeness = layer.att(torch.cat([query, x[source]], -1)).view(-1)
        share = softmax(F.leaky_relu(likeness, layer.negative_slope), target, num_nodes=len(x))
        pooled = scatter(x[source] * share[:, None], target, dim=0, dim_size=len(x), reduce="sum")
        fitness: Tensor = layer.gnn_score(pooled, edge_index)
        return fitness.view(-1) / (self.degree + 1 + len(RING))  # the sum over as many edges would saturate any gate
