"""Edges without a fixed degree: all pairs of tokens within a radius, and sums over them.

What a kernel with a finite reach, a degree or a clustering reads: as many edges as there are close pairs, never all.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crtc.graph.neighbors import Neighbors, owner_groups


@dataclass(frozen=True)
class Edges:
    """Pairs of tokens, each in both directions and once, without loops, ascending by target, then by source.

    Args:
        source: token at the one end.
        target: token at the other end.
        squared: square of their Euclidean distance.
        num: tokens, those without edges too.

    Raises:
        ValueError: if shapes disagree, an end is no token, or the edges are not in order.
    """

    source: Int[Tensor, " E"]
    target: Int[Tensor, " E"]
    squared: Float[Tensor, " E"]
    num: int

    def __post_init__(self) -> None:
        for name in ("target", "squared"):
            if getattr(self, name).shape != self.source.shape:
                raise ValueError(f"{name} is {tuple(getattr(self, name).shape)}, expected {tuple(self.source.shape)}")
        if not len(self.source):
            return
        for name in ("source", "target"):
            low, high = (int(end) for end in getattr(self, name).aminmax())
            if low < 0 or high >= self.num:
                raise ValueError(f"{name} goes from {low} to {high}, expected 0 to {self.num - 1}")
        loops = int((self.source == self.target).sum())
        if loops:
            raise ValueError(f"{loops} edges join a token with itself, expected two ends each")
        order = (self.target * self.num + self.source).diff() <= 0
        if bool(order.any()):
            raise ValueError(f"edge {int(order.nonzero()[0, 0]) + 1} is not in order, expected targets, then sources")

    @cached_property
    def first(self) -> Int[Tensor, " N+1"]:
        """Where the edges into every token begin, and the number of edges."""
        return torch.searchsorted(self.target, torch.arange(self.num + 1, device=self.target.device))

    @property
    def edge_index(self) -> Int[Tensor, "2 E"]:
        """The ends as PyG writes them, source above target."""
        return torch.stack([self.source, self.target])


def radius_edges(
    x: Float[Tensor, "N D"], owner: Int[Tensor, " N"], radius: float | Float[Tensor, " G"], *, chunk: int = 1024
) -> Edges:
    """All pairs of tokens of one owner that are at most `radius` apart, in Euclidean distance.

    Exact: matrix products of `chunk` rows against a padded group find the pairs that may be close, their differences
    decide. Memory is `G * chunk * M` and what the edges need, never the square of a long group; time still is its
    square, unlike that of `neighbor_edges`, which takes its pairs from elsewhere.

    Example:
        >>> edges = radius_edges(torch.tensor([[0.0], [1.0], [3.0]]), torch.zeros(3, dtype=torch.long), 1.5)
        >>> edges.edge_index.tolist(), edges.squared.tolist()
        ([[1, 0], [0, 1]], [1.0, 1.0])

    Args:
        x: tokens; float16 and bfloat16 are read as float32.
        owner: whose a token is, 0 to G - 1 (-1: no edges).
        radius: in the unit of `x`, one for all owners or one for each.
        chunk: rows at a time.

    Raises:
        ValueError: if a radius is not positive and finite or is missing for an owner, `owner` has another shape, a
            token is not finite or too large to be squared, or `chunk` is less than 1.
    """
    num, device = len(x), x.device
    if owner.shape != (num,):
        raise ValueError(f"owner is {tuple(owner.shape)}, expected ({num},), one for every token")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected at least 1 row")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    groups = owner_groups(owner)
    limit = torch.as_tensor(radius, dtype=x.dtype, device=device)
    limit = limit.expand(len(groups.valid)) if limit.ndim == 0 else limit
    if limit.shape != (len(groups.valid),):
        raise ValueError(f"radius is {tuple(limit.shape)}, expected one or ({len(groups.valid)},), one for every owner")
    wrong = ~((limit > 0) & limit.isfinite())
    if bool(wrong.any()):
        raise ValueError(f"radius is {float(limit[wrong][0])}, expected a positive and finite distance")
    measurable = x.square().sum(1).isfinite() | (owner < 0)
    if not bool(measurable.all()):
        token = int((~measurable).nonzero()[0, 0])
        raise ValueError(f"token {token} holds NaN, infinity or what is too large to be squared, expected finite x")
    limit = limit.square().clamp(max=torch.finfo(x.dtype).max)
    ends, squared = [torch.zeros(2, 0, dtype=torch.long, device=device)], [x.new_zeros(0)]
    longest = groups.valid.shape[1]
    if longest:
        padded = groups.gather(torch.where(owner[:, None] >= 0, x, 0.0))
        # products lose fewer digits near the origin
        padded -= (padded.sum(1) / groups.valid.sum(1, keepdim=True).clamp(min=1))[:, None]
        # smaller by more than products of D numbers can be wrong by, so that no close pair is missed
        square = padded.square().sum(-1) * (1 - 2 * (x.shape[1] + 8) * torch.finfo(x.dtype).eps)
        square.masked_fill_(~groups.valid, torch.inf)
    for start in range(0, longest, chunk):
        rows = slice(start, start + chunk)
        # every pair once: only the columns that come after a row
        far = torch.baddbmm(square[:, None, start:], padded[:, rows], padded[:, start:].transpose(1, 2), alpha=-2)
        near = far <= (limit[:, None] - square[:, rows])[..., None]
        del far
        group, row, column = near.triu_(1).nonzero(as_tuple=True)
        pair = torch.stack([groups.index[group, row + start], groups.index[group, column + start]])
        apart = squared_lengths(x, *pair)
        close = apart <= limit[group]
        ends.append(pair[:, close])
        squared.append(apart[close])
    return _both_ways(torch.cat(ends, 1), torch.cat(squared), num)


def neighbor_edges(neighbors: Neighbors, x: Float[Tensor, "N D"]) -> Edges:
    """The edges of neighbour lists in both directions, each once, whatever their relation.

    So that what reads edges runs on the grid or on the most similar tokens, in time linear in the edges.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> neighbor_edges(feature_neighbors(x, torch.zeros(3, dtype=torch.long), 1), x).edge_index.tolist()
        [[1, 0, 2, 1], [0, 1, 1, 2]]

    Args:
        neighbors: of the tokens.
        x: where distances are measured; float16 and bfloat16 are read as float32.

    Raises:
        ValueError: if there are neighbours for another number of tokens.
    """
    num = len(neighbors.index)
    if len(x) != num:
        raise ValueError(f"x has {len(x)} tokens, the neighbours are of {num}")
    ends = neighbors.to_edges()[0]
    key = torch.unique((ends.amin(0) * num + ends.amax(0))[ends[0] != ends[1]])
    pair = torch.stack([key // num, key % num]) if num else ends
    return _both_ways(pair, squared_lengths(x.to(torch.promote_types(x.dtype, torch.float32)), *pair), num)


def edge_degree(edges: Edges, kernel: Float[Tensor, " E"]) -> Float[Tensor, " N"]:
    """How many tokens like itself every token has, itself too: `1 + sum_j kernel_ij`.

    Edges into a token lie side by side and are summed as a segment, so the sum is the same every time, on a GPU too.

    Example:
        >>> edges = radius_edges(torch.tensor([[0.0], [1.0], [3.0]]), torch.zeros(3, dtype=torch.long), 1.5)
        >>> edge_degree(edges, 1 - edges.squared / 1.5**2).tolist()
        [1.5555555820465088, 1.5555555820465088, 1.0]

    Args:
        edges: of the tokens.
        kernel: likeness of the two ends of every edge, 1 for copies.

    Raises:
        ValueError: if the kernel is of another number of edges.
    """
    return 1 + _arriving(edges, kernel)


def edge_matvec(edges: Edges, kernel: Float[Tensor, " E"], weight: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The product of a kernel matrix, 1 on its diagonal, with a vector: `weight_i + sum_j kernel_ij weight_j`.

    Summed as in `edge_degree`, which is this for weights of 1.

    Example:
        >>> edges = radius_edges(torch.tensor([[0.0], [1.0], [3.0]]), torch.zeros(3, dtype=torch.long), 1.5)
        >>> edge_matvec(edges, 0.5 * torch.ones(2), torch.tensor([2.0, 4.0, 6.0])).tolist()
        [4.0, 5.0, 6.0]

    Args:
        edges: of the tokens.
        kernel: of the two ends of every edge.
        weight: of every token.

    Raises:
        ValueError: if the kernel is of another number of edges or the weights are of another number of tokens.
    """
    if weight.shape != (edges.num,):
        raise ValueError(f"weight is {tuple(weight.shape)}, expected ({edges.num},), one for every token")
    return weight + _arriving(edges, kernel, weight)


def squared_lengths(x: Float[Tensor, "N D"], one: Int[Tensor, " P"], other: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Squared Euclidean distances of pairs of tokens from their differences: 0 for copies, whatever their length.

    Example:
        >>> squared_lengths(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0]), torch.tensor([1]))
        tensor([25.])

    Args:
        x: tokens.
        one: numbers of tokens.
        other: numbers of those that they are compared with.
    """
    # a CPU keeps a part in its cache, a GPU needs few parts; neither holds a difference for every pair
    part = max((2**18 if x.device.type == "cpu" else 2**26) // max(x.shape[1], 1), 1)
    found = x.new_empty(len(one))
    for start in range(0, len(one), part):
        some = slice(start, start + part)
        found[some] = x.index_select(0, one[some]).sub_(x.index_select(0, other[some])).square_().sum(1)
    return found


def _arriving(
    edges: Edges, kernel: Float[Tensor, " E"], weight: Float[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """The sum over the edges into every token, of 1 or of the weight at their other end."""
    if kernel.shape != edges.source.shape:
        raise ValueError(f"kernel is {tuple(kernel.shape)}, expected {tuple(edges.source.shape)}, one for every edge")
    value = kernel if weight is None else kernel * weight.index_select(0, edges.source)
    return torch.segment_reduce(value, "sum", offsets=edges.first, axis=0)


def _both_ways(pair: Int[Tensor, "2 P"], squared: Float[Tensor, " P"], num: int) -> Edges:
    """Edges of pairs that are there once."""
    source, target = torch.cat([pair, pair.flip(0)], 1)
    order = (target * num + source).argsort()
    return Edges(source[order], target[order], squared.repeat(2)[order], num)
