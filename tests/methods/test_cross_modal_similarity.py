import pytest
import torch

from crtc.methods import CrossModalSimilarity
from crtc.tokens import IMAGE, TEXT, Tokens
from tests.making import make_image

TOKENS = make_image([[1.0, 0], [3, 4], [0, 2], [-1, 0]], text=[[2.0, 0], [0, -1]])


def test_largest_and_mean_cosine() -> None:
    assert CrossModalSimilarity().score(TOKENS)[:4].tolist() == pytest.approx([1, 0.6, 0, 0])
    assert CrossModalSimilarity("mean").score(TOKENS)[:4].tolist() == pytest.approx([0.5, -0.1, -0.5, -0.5])


def test_sign_turns_the_choice_round() -> None:
    assert CrossModalSimilarity()(TOKENS, torch.tensor([2])).kept.tolist() == [0, 1]
    assert CrossModalSimilarity("mean", sign=-1)(TOKENS, torch.tensor([2])).kept.tolist() == [2, 3]


def test_reads_the_text_of_its_own_sequence_only() -> None:
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [0, 1]])
    kind = torch.tensor([IMAGE, IMAGE, TEXT, IMAGE, IMAGE, TEXT, IMAGE, IMAGE])
    tokens = Tokens(
        x,
        kind,
        torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]),
        torch.tensor([0, 0, -1, 1, 1, -1, 2, 2]),
        torch.zeros(8, 3, dtype=torch.long),
    )
    score = CrossModalSimilarity().score(tokens)
    assert score[kind == IMAGE].tolist() == [1, 0, 0, 1, 0, 0]


@pytest.mark.usefixtures("unchecked")
def test_refuses_unknown_settings() -> None:
    with pytest.raises(ValueError, match="reduce is 'sum'"):
        CrossModalSimilarity("sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sign is 0"):
        CrossModalSimilarity(sign=0)  # type: ignore[arg-type]
