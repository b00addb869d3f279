import math

import pytest
import torch

from crtc.methods import DBDPC
from crtc.methods.dbdpc import farthest_added, peaks
from crtc.tokens import apply
from tests.making import make_golden, make_image


def fan(*degrees: float) -> list[list[float]]:
    return [[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees]


def test_one_mean_per_peak() -> None:
    tokens = make_image(fan(0, 4, 8, 90, 94))
    plan = DBDPC()(tokens, torch.tensor([2]))
    # Density reaches far: of each side the token that is nearest to the other side is the densest.
    assert plan.kept.tolist() == [2, 3]
    assert plan.slot.tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(apply(plan, tokens.x), torch.stack([tokens.x[:3].mean(0), tokens.x[3:].mean(0)]))


@pytest.mark.parametrize(("cutoff", "centres"), [(0.01, [2, 3]), (0.001, [0, 1, 2, 3, 4]), (1.5, [2])])
def test_peaks_are_farther_apart_than_the_cutoff(cutoff: float, centres: list[int]) -> None:
    x = torch.tensor(fan(0, 4, 8, 90, 94))
    distance = (1 - x @ x.T)[None].clamp(min=0)
    density, everyone = (-(distance / 2).square()).exp().sum(-1), torch.ones(1, 5, dtype=torch.bool)
    found = peaks(distance, density, everyone, torch.tensor([cutoff]))
    assert found[0].nonzero()[:, 0].tolist() == centres
    fewer = peaks(distance, density, everyone, torch.tensor([cutoff]), 2)
    assert int(fewer.sum()) == min(len(centres), 2) and not bool((fewer & ~found).any())


def test_fills_up_with_the_farthest() -> None:
    distance = torch.tensor([[[0.0, 1, 3, 9], [1, 0, 2, 8], [3, 2, 0, 6], [9, 8, 6, 0]]])
    centre, valid = torch.tensor([[True, False, False, False]]), torch.ones(1, 4, dtype=torch.bool)
    assert farthest_added(distance, centre, valid, torch.tensor([2])).tolist() == [[True, False, False, True]]
    assert farthest_added(distance, centre, valid, torch.tensor([3])).tolist() == [[True, False, True, True]]
    assert centre.tolist() == [[True, False, False, False]]


def test_a_given_cutoff_is_raised_until_k_are_left() -> None:
    tokens = make_golden(0)
    own = DBDPC(cutoff=0.55)(tokens, torch.tensor([80])).kept  # what the cutoff gives
    assert DBDPC(cutoff=0.55)(tokens, torch.tensor([81])).kept.tolist() != own.tolist()
    assert set(own.tolist()) < set(DBDPC(cutoff=0.55)(tokens, torch.tensor([81])).kept.tolist())
    assert len(DBDPC(cutoff=0.55)(tokens, torch.tensor([20])).kept) == 20


def test_keys_decide_where_asked() -> None:
    tokens = make_image(fan(0, 4, 90, 94), keys=fan(0, 90, 4, 94))
    assert DBDPC()(tokens, torch.tensor([2])).slot.tolist() == [0, 0, 1, 1]
    assert DBDPC("keys")(tokens, torch.tensor([2])).slot.tolist() == [1, 0, 1, 0]
    assert DBDPC("keys").needs == {"keys"}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "value"), [("metric", "queries"), ("cutoff", 2.5)])
def test_refuses_impossible_settings(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        DBDPC(**{name: value})  # type: ignore[arg-type]
