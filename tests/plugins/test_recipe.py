"""What users write for a plug-in is checked before any model is loaded."""

import re
from typing import Any

import pytest

from crtc.methods import KMeans, Reinforced, ReinforcedScorer
from crtc.plugins.recipe import Recipe, chosen


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "keep is None and count is None"),
        ({"keep": 0.5, "count": 3}, "keep is 0.5 and count is 3"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"keep": True}, "keep is True"),
        ({"keep": "half"}, "keep is 'half'"),
        ({"count": 0}, "count is 0"),
        ({"count": 2.5}, "count is 2.5"),
        ({"count": 3, "mass": "on"}, "mass is 'on'"),
        ({"count": 3, "positions": "drop"}, "positions is 'drop'"),
    ],
)
def test_wrong_recipes_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Recipe(KMeans(), **given)


def test_methods_by_name_with_settings() -> None:
    assert isinstance(chosen("kmeans", None), KMeans)
    plain = chosen(None, None)
    assert isinstance(plain, Reinforced) and plain.importance == "inverse_degree"
    blind = chosen("reinforced_scorer", None, question=False)
    assert isinstance(blind, ReinforcedScorer) and not blind.question_aware


def test_scorers_by_folder(tmp_path: Any) -> None:
    ReinforcedScorer.ready().save_pretrained(tmp_path)
    scorer = chosen(None, str(tmp_path), question=False)
    assert isinstance(scorer, ReinforcedScorer) and not scorer.question_aware


@pytest.mark.parametrize(
    ("method", "scorer", "settings", "said"),
    [
        (None, None, {"colour": "red"}, "reinforced cannot be made with {'colour': 'red'}"),
        ("kmeans", "runs/mine", {}, "expected at most one of them"),
        ("kmeens", None, {}, "no method is named 'kmeens'"),
        ("kmeans", None, {"colour": "red"}, "kmeans cannot be made with {'colour': 'red'}"),
    ],
)
def test_wrong_methods_are_refused(method: str | None, scorer: str | None, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        chosen(method, scorer, **settings)
