"""Methods as a user writes them."""

import pytest

from crtc.methods import KMeans, Reinforced
from crtc.methods.rows import named


def test_settings_follow_in_brackets() -> None:
    label = "reinforced(importance=question_attention*inverse_degree^0.5, look=32)"
    rows = named(["random", "kmeans( seed = 3,metric=spherical )", label, "reinforced_scorer blind"])
    assert list(rows) == ["random", "kmeans( seed = 3,metric=spherical )", label, "reinforced_scorer blind"]
    ward, clusters = rows[label], rows["kmeans( seed = 3,metric=spherical )"]
    assert isinstance(ward, Reinforced) and isinstance(clusters, KMeans)
    assert ward.importance == "question_attention*inverse_degree^0.5" and ward.look == 32
    assert clusters.seed == 3 and clusters.metric == "spherical"
    assert not rows["reinforced_scorer blind"].question_aware


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kmeans(seed=1", r"'kmeans\(seed=1', expected name"),
        ("kmeans(seed)", "expected name"),
        ("kmeans()", "expected name"),
        ("kmeans(seeds=1)", r"'kmeans\(seeds=1\)' cannot be made"),
        ("kmean(seed=1)", "no method is named 'kmean'"),
        ("kmeans(metric=cosine)", "metric is 'cosine'"),
    ],
)
def test_what_cannot_be_made_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named([text])
