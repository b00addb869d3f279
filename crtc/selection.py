"""Selectors: pure functions that choose, on whole padded batches of groups.

Every selector takes `valid [G, M]` and whole numbers `k [G]`, works on the groups side by side as `Groups` lays them
out, and returns the chosen ones as a mask [G, M] with exactly `k[g]` true entries per row. Ties go to the earlier
token. Cutting a grid into regions is here too: `central` members of k regions are a choice as well.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crtc.tokens import DROPPED


def top_k(score: Float[Tensor, "G M"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]) -> Bool[Tensor, "G M"]:
    """The `k[g]` highest scores of every group."""
    order = score.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.zeros_like(valid).scatter(1, order, rank < k[:, None])


def raster(grid: Int[Tensor, "G M 3"], valid: Bool[Tensor, "G M"]) -> Int[Tensor, "G M"]:
    """Rank of every cell of a group by time, row and column; padding comes last."""
    extent = grid.amax(dim=(0, 1)) + 1
    key = (grid[..., 0] * extent[1] + grid[..., 1]) * extent[2] + grid[..., 2]
    return _rank(key.masked_fill(~valid, torch.iinfo(key.dtype).max))


def stride(position: Int[Tensor, "G M"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]) -> Bool[Tensor, "G M"]:
    """The tokens at the positions `floor(i * n / k)`, i = 0 ... k - 1, of groups of n."""
    size, k = valid.sum(1)[:, None], k[:, None]
    step = (position * k + size - 1) // size
    return valid & (step < k) & (step * size // k == position)


def regions(grid: Int[Tensor, "G M 3"], valid: Bool[Tensor, "G M"], k: Int[Tensor, " G"]) -> Int[Tensor, "G M"]:
    """Cut every grid into `k[g]` compact regions of nearly equal numbers of cells; the answer labels every cell.

    Cells in raster order are cut into min(k, frames) segments of time, each segment into bands of rows, and each band,
    in the order of columns, into its regions; every cut gives a part as many cells as it holds regions. So k regions
    come out for every k and every set of cells, and s x s equal squares where s * s = k and s divides both sides.
    There are sqrt(k * height / width) bands, to the nearest whole number.

    Labels are in [0, M), not consecutive; those of padding mean nothing.
    """
    extent = grid.amax(dim=(0, 1)) + 1
    low = grid.masked_fill(~valid[..., None], torch.iinfo(grid.dtype).max).amin(1)
    high = grid.masked_fill(~valid[..., None], -1).amax(1)
    frames, height, width = (high - low + 1)[:, :, None].unbind(1)
    shape = valid.shape
    start, cells, share = torch.zeros_like(grid[..., 0]), valid.sum(1)[:, None].expand(shape), k[:, None].expand(shape)

    position = raster(grid, valid)
    start, cells, share = _cut(position, start, cells, share, torch.minimum(share, frames))
    bands = (share * height / width).sqrt().round().long().clamp(min=1).minimum(share)
    start, cells, share = _cut(position, start, cells, share, bands)
    key = ((start * extent[2] + grid[..., 2]) * extent[0] + grid[..., 0]) * extent[1] + grid[..., 1]
    position = _rank(key.masked_fill(~valid, torch.iinfo(key.dtype).max))
    start, _, _ = _cut(position, start, cells, share, share)
    return start.clamp(max=shape[1] - 1)


def central(grid: Int[Tensor, "G M 3"], label: Int[Tensor, "G M"], valid: Bool[Tensor, "G M"]) -> Int[Tensor, "G M"]:
    """Owner map: every cell joins the cell of its label that is nearest to their common centre.

    Whole-number arithmetic, so that the four cells of a square are a true tie, which goes to the first in raster order.
    """
    own = valid.long()
    count = torch.zeros_like(label).scatter_add(1, label, own).gather(1, label)
    wide = label[..., None].expand_as(grid)
    total = torch.zeros_like(grid).scatter_add(1, wide, grid * own[..., None]).gather(1, wide)
    distance = (grid * count[..., None] - total).square().sum(-1)
    tied = valid & (distance == _lowest(distance, label, valid))
    position = raster(grid, valid)
    centre = tied & (position == _lowest(position, label, tied))
    places = torch.arange(label.shape[1], device=label.device).expand_as(label)
    return _lowest(places, label, centre).masked_fill(~valid, DROPPED)


def _lowest(value: Int[Tensor, "G M"], label: Int[Tensor, "G M"], among: Bool[Tensor, "G M"]) -> Int[Tensor, "G M"]:
    """For every token the lowest value that its label has among some tokens."""
    most = torch.iinfo(value.dtype).max
    lowest = torch.full_like(value, most).scatter_reduce(1, label, value.masked_fill(~among, most), "amin")
    return lowest.gather(1, label)


def _rank(key: Int[Tensor, "G M"]) -> Int[Tensor, "G M"]:
    """Place of every entry in the ascending order of its row."""
    order = key.argsort(dim=1, stable=True)
    return torch.zeros_like(order).scatter(1, order, torch.arange(key.shape[1], device=key.device).expand_as(order))


def _cut(
    position: Int[Tensor, "G M"],
    start: Int[Tensor, "G M"],
    cells: Int[Tensor, "G M"],
    share: Int[Tensor, "G M"],
    parts: Int[Tensor, "G M"],
) -> tuple[Int[Tensor, "G M"], Int[Tensor, "G M"], Int[Tensor, "G M"]]:
    """Cut pieces of `cells` cells and `share` regions each, which begin at `start`, into `parts`; the same three again.

    Part j takes the regions from `floor(j * share / parts)` on and region i the cells from `floor(i * cells / share)`
    on, so that every part has at least as many cells as regions. What a cell is in is the inverse of these floors.
    """
    region = ((position - start + 1) * share - 1) // cells
    part = ((region + 1) * parts - 1) // share
    first, last = part * share // parts, (part + 1) * share // parts
    begin, end = first * cells // share, last * cells // share
    return start + begin, end - begin, last - first
