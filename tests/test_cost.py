"""Layer-equivalent counts, by hand."""

import pytest
import torch

from crtc.cost import ending_with, layer_equivalent, matched, read_counts, staged

N = torch.tensor([576])


def test_fastv_that_keeps_64_costs_96() -> None:
    kept = ending_with(N, [1.0], torch.tensor([64]))
    assert layer_equivalent(read_counts(N, kept, [2], 32)).tolist() == [96.0]


@pytest.mark.parametrize(("kept", "mean"), [([300, 200, 110], 191.0), ([303, 110, 36], 126.25), ([66, 30, 17], 62.125)])
def test_sparsevlm_as_its_authors_count(kept: list[int], mean: float) -> None:
    """2 layers read all, 4 the first count, 10 the second, 16 the last."""
    counts = read_counts(N, torch.tensor(kept)[:, None], [2, 6, 16], 32)
    assert layer_equivalent(counts).tolist() == [mean]


def test_pyramiddrop_costs_270() -> None:
    kept = staged(N, [0.5, 0.25, 0.125], torch.ones(1, dtype=torch.float64))
    assert kept[:, 0].tolist() == [288, 144, 72]
    assert layer_equivalent(read_counts(N, kept, [8, 16, 24], 32)).tolist() == [270.0]


def test_matched_spends_the_target_and_not_more() -> None:
    sizes, target = torch.tensor([576, 576, 64]), torch.tensor([64, 576, 40])
    kept = matched(sizes, [1.0], target, [2], 32)
    assert kept.tolist() == [[29, 576, 38]]  # (2 * 576 + 30 * 29) / 32 = 63.2, one more would be 64.1
    spent = layer_equivalent(read_counts(sizes, kept, [2], 32))
    assert bool((spent <= target).all()) and bool((spent > target - 1).all())


@pytest.mark.parametrize("target", range(150, 577, 60))
def test_matched_stages_differ_by_less_than_a_token(target: int) -> None:
    shares, layers = [0.5, 0.25, 0.125], [8, 16, 24]
    kept = matched(N, shares, torch.tensor([target]), layers, 32)
    assert bool((kept[:, 0].diff() <= 0).all())
    spent = float(layer_equivalent(read_counts(N, kept, layers, 32)))
    assert target - 1 < spent <= target


def test_what_cannot_be_matched() -> None:
    with pytest.raises(ValueError, match=r"target of group 0 is 16 tokens .* between 36\.9, .* layer 2 .* its 576"):
        matched(N, [1.0], torch.tensor([16]), [2], 32)
    with pytest.raises(ValueError, match="target of group 0 is 600"):
        matched(N, [1.0], torch.tensor([600]), [2], 32)


def test_layers_are_checked() -> None:
    for layers in ([0], [32], [4, 4], [6, 5]):
        with pytest.raises(ValueError, match="ascending numbers from 1 to 31"):
            read_counts(N, torch.ones(len(layers), 1, dtype=torch.long), layers, 32)
    with pytest.raises(ValueError, match="one for each of 2 rows"):
        read_counts(N, torch.ones(2, 1, dtype=torch.long), [3], 32)
