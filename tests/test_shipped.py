"""What ships answers well: the only tests that depend on how well the shipped host and scorer were trained."""

from typing import Any

import pytest

from crtc.evaluation import Evaluation
from crtc.evaluation.evaluate import NO_IMAGE, Results
from crtc.evaluation.report import better_setting
from crtc.methods import Random, get_method
from crtc.tasks.picture import Glyphs

COUNT = 32


@pytest.fixture(scope="module")
def results(host: tuple[Any, Any]) -> Results:
    """96 questions about 8 test pictures."""
    methods = {
        "random": Random(),
        "reinforced_scorer": get_method("reinforced_scorer"),
        "reinforced_scorer blind": get_method("reinforced_scorer", question=False),
    }
    return Evaluation(host, Glyphs("test", 8, 12), methods, counts=[COUNT]).run()


def test_the_host_answers(results: Results) -> None:
    assert len(results.full().right) == 96
    assert results.full().right.mean() > 0.9


def test_the_host_looks_at_the_image(results: Results) -> None:
    assert results.runs[NO_IMAGE, False, 0].right.mean() < results.full().right.mean() - 0.3


@pytest.mark.parametrize("label", ["reinforced_scorer", "reinforced_scorer blind"])
def test_the_scorer_beats_chance(results: Results, label: str) -> None:
    ours, random = (results.runs[name, better_setting(results, name, COUNT), COUNT] for name in (label, "random"))
    assert ours.right.sum() > random.right.sum()
    assert ours.kl.mean() < random.kl.mean()
