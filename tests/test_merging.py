import torch

from crtc.merging import central_members


def test_the_member_nearest_to_the_mean_in_direction_stands_for_all() -> None:
    # The mean of the first three points at 1, though the second is nearer to the middle of their directions.
    x = torch.tensor([[[1.0, 0], [10, 1], [1, 1], [0, 1], [0, 2]]])
    label = torch.tensor([[0, 0, 0, 4, 4]])
    owner = central_members(x, label, torch.ones(1, 5, dtype=torch.bool))
    assert owner.tolist() == [[1, 1, 1, 3, 3]]  # of two alike the first


def test_padding_joins_none() -> None:
    x = torch.tensor([[[1.0, 0], [0, 1], [0, 0]], [[1, 0], [1, 0.1], [1, 0.3]]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    owner = central_members(x, torch.tensor([[0, 1, 0], [2, 2, 2]]), valid)
    assert owner.tolist() == [[0, 1, -1], [1, 1, 1]]
