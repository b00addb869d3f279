import pytest
import torch

from crtc.methods import ApET
from crtc.methods.apet import reconstruction_error
from crtc.tokens import apply
from tests.making import make_golden


def test_errors_are_those_of_least_squares() -> None:
    tokens = make_golden(0)
    assert tokens.signals.features is not None
    x = tokens.signals.features[tokens.candidates]
    basis = torch.zeros(1, len(x), dtype=torch.bool)
    basis[0, [3, 50, 77]] = True
    solved = torch.linalg.lstsq(x[basis[0]].T.double(), x.T.double()).solution
    expected = (x.T.double() - x[basis[0]].T.double() @ solved).norm(dim=0)
    torch.testing.assert_close(reconstruction_error(x[None], basis)[0].double(), expected, atol=1e-3, rtol=1e-4)


def test_keeps_the_basis_untouched_and_merges_the_rest_by_mean() -> None:
    tokens, k = make_golden(1), torch.tensor([40])
    plan = ApET()(tokens, k)
    rows = apply(plan, tokens.x)
    untouched = [place for place, size in enumerate(plan.size.tolist()) if size == 1]
    assert len(untouched) >= 10
    torch.testing.assert_close(rows[untouched], tokens.x[plan.kept[untouched]])
    place = int(plan.size.argmax())
    torch.testing.assert_close(rows[place], tokens.x[plan.slot == place].mean(0))


def test_a_basis_as_large_as_the_count_is_all_that_stays() -> None:
    tokens = make_golden(1)
    few = ApET(basis=10)(tokens, torch.tensor([10]))
    assert float(few.size.sum()) == 144
    assert set(few.kept.tolist()) <= set(ApET(basis=10)(tokens, torch.tensor([30])).kept.tolist())


def test_refuses_impossible_settings() -> None:
    with pytest.raises(ValueError, match="0"):
        ApET(basis=0)
