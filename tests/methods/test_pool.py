import pytest
import torch
from torch.nn import functional as F

from crtc.methods import Pool
from crtc.tokens import apply
from tests.making import make_image, make_tokens


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"), [(6, 6, 3, 3), (6, 6, 2, 2), (4, 8, 2, 4), (9, 3, 3, 1)]
)
def test_is_adaptive_pooling_where_squares_fit(rows: int, columns: int, height: int, width: int) -> None:
    tokens = make_tokens([[(rows, columns)]])
    pooled = apply(Pool()(tokens, torch.tensor([height * width])), tokens.x)
    visual = tokens.x[tokens.candidates].view(rows, columns, -1).permute(2, 0, 1)
    expected = F.adaptive_avg_pool2d(visual, (height, width)).flatten(1).T
    assert torch.allclose(pooled, expected, atol=1e-6)


def test_three_regions_of_a_square() -> None:
    # Two bands of one and two regions: 3 and 6 of the 9 cells, the second band cut in the order of columns.
    tokens = make_image([[float(value)] for value in range(9)], columns=3)
    plan = Pool()(tokens, torch.tensor([3]))
    assert plan.kept.tolist() == [1, 3, 8]
    assert plan.slot.tolist() == [0, 0, 0, 1, 1, 2, 1, 2, 2]
    assert apply(plan, tokens.x)[:, 0].tolist() == pytest.approx([1, 13 / 3, 20 / 3])
    assert plan.size.tolist() == [3, 3, 3]
