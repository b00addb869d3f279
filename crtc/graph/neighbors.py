"""Neighbour lists of fixed degree: which tokens influence a token, and how alike they are.

Fixed degree makes message passing a gather: no scatter, the same result every time, friendly to `torch.compile`. Where
a token has fewer neighbours than the degree, the rest of its row is masked and points at the token itself.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.tokens import Groups, Tokens


@dataclass(frozen=True)
class Neighbors:
    """Edges `index[i, j] -> i` with a likeness each.

    Args:
        index: the j-th neighbour of every token; the token itself where masked.
        likeness: cosine of the two tokens, 1 for edges that are not made by likeness, 0 where masked.
        valid: which entries are edges.
        relation: what kind of edge it is, a number that the learned edge weights may use (such as a direction).
        relations: how many kinds there are, whether or not any edge is of them.
    """

    index: Int[Tensor, "N K"]
    likeness: Float[Tensor, "N K"]
    valid: Bool[Tensor, "N K"]
    relation: Int[Tensor, "N K"]
    relations: int

    @property
    def degree(self) -> int:
        """Entries per token."""
        return self.index.shape[1]

    def to_edges(self) -> tuple[Int[Tensor, "2 E"], Float[Tensor, " E"], Int[Tensor, " E"]]:
        """The same edges as PyG writes them: `edge_index` (source above target), likeness, relation."""
        target, place = self.valid.nonzero(as_tuple=True)
        return (
            torch.stack([self.index[target, place], target]),
            self.likeness[target, place],
            self.relation[target, place],
        )


def join(*parts: Neighbors) -> Neighbors:
    """One list with the edges of all; the relations of each part follow those of the one before."""
    shifted, offset = [], 0
    for part in parts:
        shifted.append(part.relation + offset)
        offset += part.relations
    return Neighbors(
        torch.cat([part.index for part in parts], 1),
        torch.cat([part.likeness for part in parts], 1),
        torch.cat([part.valid for part in parts], 1),
        torch.cat(shifted, 1),
        offset,
    )


def feature_neighbors(
    x: Float[Tensor, "N D"], owner: Int[Tensor, " N"], degree: int, *, chunk: int = 4096
) -> Neighbors:
    """The `degree` most similar tokens by cosine among those with the same owner (-1: no edges).

    Exact, by matrix products of at most `chunk` rows against a padded group, so memory is `G * chunk * M`, never the
    square of a long group.

    Raises:
        ValueError: if degree is less than 1.
    """
    if degree < 1:
        raise ValueError(f"degree is {degree}, expected at least 1")
    num = len(x)
    itself = torch.arange(num, device=x.device)
    index = itself[:, None].repeat(1, degree)
    likeness = torch.zeros(num, degree, device=x.device)
    valid = torch.zeros(num, degree, dtype=torch.bool, device=x.device)
    groups = owner_groups(owner)
    if groups.valid.numel():
        longest = groups.valid.shape[1]
        unit = F.normalize(groups.gather(x).float(), dim=-1)
        width = min(degree, longest)
        for start in range(0, longest, chunk):
            rows = slice(start, min(start + chunk, longest))
            cosine = unit[:, rows] @ unit.transpose(1, 2)
            cosine.masked_fill_(~groups.valid[:, None], -torch.inf)
            places = torch.arange(rows.start, rows.stop, device=x.device)
            cosine[:, places - rows.start, places] = -torch.inf
            best, nearest = cosine.topk(width, dim=-1)
            real = (best > -torch.inf) & groups.valid[:, rows, None]
            nodes = groups.index[:, rows]
            found = groups.index.gather(1, nearest.flatten(1)).view_as(nearest)
            inside = groups.valid[:, rows]
            index[nodes[inside], :width] = torch.where(real, found, nodes[..., None])[inside]
            likeness[nodes[inside], :width] = best.masked_fill(~real, 0)[inside]
            valid[nodes[inside], :width] = real[inside]
    return Neighbors(index, likeness, valid, torch.zeros_like(index), 1)


def owner_groups(owner: Int[Tensor, " N"]) -> Groups:
    """Members of every owner side by side, whatever their order in the list."""
    member = (owner >= 0).nonzero()[:, 0]
    member = member[owner[member].argsort(stable=True)]
    if not len(member):
        empty = torch.zeros(0, 0, dtype=torch.long, device=owner.device)
        return Groups(empty, empty.bool())
    sizes = torch.bincount(owner[member])
    valid = torch.arange(int(sizes.max()), device=owner.device) < sizes[:, None]
    index = torch.zeros(valid.shape, dtype=torch.long, device=owner.device)
    index[valid] = member
    return Groups(index, valid)


RING = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def grid_neighbors(tokens: Tokens, *, reaches: tuple[int, ...] = (1,)) -> Neighbors:
    """The eight grid neighbours of every visual token at each reach, and the same patch in the frame before and after.

    The relation is the direction: 0 and 1 for the frame before and after (columns of their own only where there is more
    than one frame), 2..9 for the ring of the first reach, 10..17 for the second, ...

    Args:
        tokens: with `grid` set for their candidates.
        reaches: distances in patches, each giving a ring of eight.

    Raises:
        ValueError: if a reach is less than 1.
    """
    if any(reach < 1 for reach in reaches):
        raise ValueError(f"reaches is {reaches}, expected distances of at least 1 patch")
    offsets = [(-1, 0, 0), (1, 0, 0), *((0, r * reach, c * reach) for reach in reaches for r, c in RING)]
    relations = len(offsets)
    first = 0 if len(tokens) and int(tokens.grid[:, 0].max()) > 0 else 2
    directions = torch.arange(first, len(offsets), device=tokens.x.device)
    offsets = offsets[first:]
    num, device = len(tokens), tokens.x.device
    itself = torch.arange(num, device=device)
    relation = directions.repeat(num, 1)
    placed = tokens.candidates & (tokens.grid >= 0).all(1)
    if not bool(placed.any()):
        index = itself[:, None].repeat(1, len(offsets))
        return Neighbors(
            index,
            torch.zeros(index.shape, device=device),
            torch.zeros_like(index, dtype=torch.bool),
            relation,
            relations,
        )
    margin = max((*reaches, 1))
    extent = tokens.grid[placed].amax(0) + 1 + 2 * margin
    shape = (tokens.num_groups, *extent.tolist())
    table = torch.full(shape, -1, dtype=torch.long, device=device)
    t, r, c = (tokens.grid[placed] + margin).unbind(1)
    group = tokens.group[placed]
    table[group, t, r, c] = itself[placed]
    shift = torch.tensor(offsets, dtype=torch.long, device=device).view(-1, 3)
    found = table[group[:, None], t[:, None] + shift[:, 0], r[:, None] + shift[:, 1], c[:, None] + shift[:, 2]]
    index = itself[:, None].repeat(1, len(offsets))
    valid = torch.zeros_like(index, dtype=torch.bool)
    valid[placed] = found >= 0
    index[placed] = torch.where(found >= 0, found, itself[placed][:, None])
    return Neighbors(index, valid.float(), valid, relation, relations)


def text_order(tokens: Tokens, *, reach: int = 2) -> Neighbors:
    """The text tokens up to `reach` places before and after a text token, in the order of its sequence's text.

    The relation is the offset, -reach..-1, 1..reach, counted from 0.

    Raises:
        ValueError: if the reach is less than 1.
    """
    if reach < 1:
        raise ValueError(f"reach is {reach}, expected at least 1")
    num, device = len(tokens), tokens.x.device
    text = (~tokens.candidates).nonzero()[:, 0]
    offsets = torch.tensor([o for o in range(-reach, reach + 1) if o], device=device)
    itself = torch.arange(num, device=device)
    index = itself[:, None].repeat(1, len(offsets))
    valid = torch.zeros_like(index, dtype=torch.bool)
    place = torch.arange(len(text), device=device)[:, None] + offsets
    inside = (place >= 0) & (place < len(text))
    other = text[place.clamp(0, max(len(text) - 1, 0))] if len(text) else place
    inside = inside & (tokens.sequence[other] == tokens.sequence[text][:, None]) if len(text) else inside
    valid[text] = inside
    index[text] = torch.where(inside, other, text[:, None])
    relation = torch.arange(len(offsets), device=device).expand_as(index)
    return Neighbors(index, valid.float(), valid, relation, len(offsets))


def text_image(tokens: Tokens, *, from_text: int = 4, from_image: int = 16) -> Neighbors:
    """Edges between the modalities by cosine: to each candidate from its `from_text` most relevant text tokens of the
    same sequence, and to each text token from its `from_image` most relevant candidates.

    The relation is 0 for text to image and 1 for image to text.
    """
    num, device = len(tokens), tokens.x.device
    degree = max(from_text, from_image)
    itself = torch.arange(num, device=device)
    index = itself[:, None].repeat(1, degree)
    likeness = torch.zeros(num, degree, device=device)
    valid = torch.zeros_like(index, dtype=torch.bool)
    relation = (~tokens.candidates).long()[:, None].repeat(1, degree)
    text = owner_groups(torch.where(tokens.candidates, -1, tokens.sequence))
    image = owner_groups(torch.where(tokens.candidates, tokens.sequence, -1))
    if not (text.valid.numel() and image.valid.numel()):
        return Neighbors(index, likeness, valid, relation, 2)
    both = min(len(text.valid), len(image.valid))
    text, image = (Groups(part.index[:both], part.valid[:both]) for part in (text, image))
    unit = F.normalize(tokens.x.float(), dim=-1)
    cosine = image.gather(unit) @ text.gather(unit).transpose(1, 2)
    cosine = cosine.masked_fill(~(image.valid[..., None] & text.valid[:, None]), -torch.inf)
    for target, source, score, width in (
        (image, text, cosine, from_text),
        (text, image, cosine.transpose(1, 2), from_image),
    ):
        best, nearest = score.topk(min(width, score.shape[-1]), dim=-1)
        real = best > -torch.inf
        found = source.index.gather(1, nearest.flatten(1)).view_as(nearest)
        nodes, inside, columns = target.index[target.valid], target.valid, best.shape[-1]
        index[nodes, :columns] = torch.where(real, found, target.index[..., None])[inside]
        likeness[nodes, :columns] = best.masked_fill(~real, 0)[inside]
        valid[nodes, :columns] = real[inside]
    return Neighbors(index, likeness, valid, relation, 2)
