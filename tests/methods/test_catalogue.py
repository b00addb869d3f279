import sys
from pathlib import Path

import pytest

from crtc.methods import KMeans, Method, Pool, ScoreMethod, ToDRE, UniformGrid, catalogue, get_method, golden


def test_finds_what_can_be_made() -> None:
    methods = catalogue()
    assert methods["kmeans"] is KMeans
    assert methods["uniform_grid"] is UniformGrid
    assert {"cls_attention", "tome", "gprune"} <= set(methods)
    assert Method not in methods.values()
    assert ScoreMethod not in methods.values()
    assert list(methods) == sorted(methods)


@pytest.mark.parametrize("name", ["uniform_grid", "UniformGrid", "uniform-grid", "UNIFORMGRID"])
def test_spelling_does_not_matter(name: str) -> None:
    method = get_method(name, dims=1)
    assert isinstance(method, UniformGrid)
    assert method.dims == 1


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'kmeens'.*cls_attention.*kmeans"):
        get_method("kmeens")


def test_golden_names_what_the_files_are_of() -> None:
    compared = golden()
    assert compared is not None
    assert {"vision_zip", "dbdpc", "pru_merge_plus"} <= compared <= set(catalogue())
    assert "random" not in compared


def test_golden_is_unknown_without_the_tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["crtc.methods.catalogue"], "GOLDEN", tmp_path / "none")
    assert golden() is None


def test_deviations_are_read_off_the_docstring() -> None:
    assert ToDRE.deviations() == (
        "stage two, which removes all visual tokens late in the language model, is not a choice of tokens and not "
        "here; dropped tokens give their mass to the kept token most like them."
    )
    assert Pool.deviations() == ""
