import pytest
import torch

from crtc.methods import VisionZip
from crtc.tokens import apply
from tests.making import make_image, make_tokens

# Token 2 is dominant; of the rest 0, 1, 3, 4, 5 the targets are 0 and 3 (stride 5 // 2); 1 and 5 join 0, 4 joins 3.
TOKENS = make_image(
    [[1.0], [2], [4], [8], [16], [32]],
    cls_attention=[0.1, 0.1, 0.5, 0.1, 0.1, 0.1],
    keys=[[1.0, 0], [1, 0.1], [1, 1], [0, 1], [0.1, 1], [1, -1]],
)


def test_contextual_is_target_plus_mean_of_joined() -> None:
    plan = VisionZip(1, 2)(TOKENS, torch.tensor([3]))
    assert plan.kept.tolist() == [0, 2, 3]
    assert plan.slot.tolist() == [0, 0, 1, 2, 2, 0]
    assert apply(plan, TOKENS.x)[:, 0].tolist() == [1 + (2 + 32) / 2, 4, 8 + 16]
    assert plan.size.tolist() == [3, 1, 2]


def test_normalised_contextual_is_the_mean() -> None:
    plan = VisionZip(1, 2, normalise=True)(TOKENS, torch.tensor([3]))
    assert apply(plan, TOKENS.x)[:, 0].tolist() == pytest.approx([(1 + 2 + 32) / 3, 4, 12])


@pytest.mark.parametrize("normalise", [False, True])
def test_a_single_token_is_dominant_and_pure(normalise: bool) -> None:
    plan = VisionZip(normalise=normalise)(TOKENS, torch.tensor([1]))
    assert plan.kept.tolist() == [2]
    assert apply(plan, TOKENS.x).tolist() == [[4]]
    assert plan.size.tolist() == [6]


@pytest.mark.parametrize(("k", "contextual"), [(64, 10), (128, 20), (192, 30), (4, 1), (2, 1)])
def test_published_proportion(k: int, contextual: int) -> None:
    tokens = make_tokens([[(24, 24)]])
    plan = VisionZip()(tokens, torch.tensor([k]))
    attention = tokens.signals.cls_attention
    assert attention is not None
    dominant = torch.isin(plan.kept, attention.argsort(descending=True, stable=True)[: k - contextual])
    assert int(dominant.sum()) == k - contextual
    assert plan.size[dominant].tolist() == [1] * (k - contextual)
    assert float(plan.size[~dominant].sum()) == 576 - (k - contextual)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["dominant", "contextual"])
def test_refuses_empty_parts(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        VisionZip(**{name: 0})  # type: ignore[arg-type]
