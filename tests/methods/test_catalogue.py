import pytest

from crtc.methods import KMeans, Method, ScoreMethod, UniformGrid, catalogue, get_method


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
