from typing import Literal

import pytest
import torch

from crtc.methods import UniformGrid
from crtc.selection import regions
from crtc.tokens import Tokens
from tests.making import make_image, make_tokens


def kept(tokens: Tokens, k: int, dims: Literal[1, 2] = 2) -> list[int]:
    return list(UniformGrid(dims)(tokens, torch.tensor([k])).kept.tolist())


def test_keeps_cell_centres() -> None:
    tokens = make_tokens([[(6, 6)]])
    assert kept(tokens, 4) == [7, 10, 25, 28]
    assert kept(tokens, 9) == [0, 2, 4, 12, 14, 16, 24, 26, 28]


def test_rows_follow_the_shape() -> None:
    assert kept(make_tokens([[(3, 12)]]), 4) == [13, 16, 19, 22]
    assert kept(make_tokens([[(12, 3)]]), 4) == [4, 13, 22, 31]


def test_k_that_is_no_square() -> None:
    # Two bands of two and three regions, so of 8 and 12 cells; every region has four cells.
    assert kept(make_tokens([[(4, 5)]]), 5) == [0, 3, 10, 12, 14]


def test_one_dimension_is_a_stride() -> None:
    tokens = make_image(torch.rand(10, 3), columns=5)
    assert kept(tokens, 4, dims=1) == [0, 2, 5, 7]
    assert kept(tokens, 9, dims=1) == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_raster_order_comes_from_the_grid() -> None:
    image = make_image(torch.rand(4, 3), columns=2)
    turned = Tokens(image.x, image.kind, image.sequence, image.group, image.grid.flip(0), image.signals)
    assert kept(turned, 2, dims=1) == [1, 3]


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (4, 6), (5, 5)])
@pytest.mark.parametrize("holes", [False, True])
def test_regions_are_k_and_nearly_equal_for_every_k(frames: int, rows: int, columns: int, holes: bool) -> None:
    cells = torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))
    cells = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))] if holes else cells
    cells = cells[: 2 * len(cells) // 3] if holes else cells
    num = len(cells)
    every_k = torch.arange(1, num + 1)
    label = regions(cells.expand(num, -1, -1), torch.ones(num, num, dtype=torch.bool), every_k)
    for k, row in zip(every_k.tolist(), label, strict=True):
        sizes = torch.bincount(row)
        sizes = sizes[sizes > 0]
        assert len(sizes) == k
        assert int(sizes.max() - sizes.min()) <= 3


def test_frames_are_apart_where_k_divides() -> None:
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(4))
    label = regions(cells[None], torch.ones(1, 48, dtype=torch.bool), torch.tensor([12]))[0].view(3, 4, 4)
    assert len(set(label[:, ::2, ::2].flatten().tolist())) == 12
    assert torch.equal(label[:, ::2, ::2], label[:, 1::2, 1::2])


def test_one_group_does_not_change_another() -> None:
    tokens = make_tokens([[(4, 4), (2, 7)]])
    plan = UniformGrid()(tokens, torch.tensor([4, 2]))
    alone = UniformGrid()(make_tokens([[(2, 7)]]), torch.tensor([2])).kept
    assert (plan.kept[4:] - 16).tolist() == alone.tolist()


@pytest.mark.usefixtures("unchecked")
def test_refuses_other_dims() -> None:
    with pytest.raises(ValueError, match="dims is 3"):
        UniformGrid(dims=3)  # type: ignore[arg-type]
