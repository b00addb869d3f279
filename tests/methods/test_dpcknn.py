import pytest
import torch

from crtc.methods import DpcKnn
from crtc.tokens import apply
from tests.making import make_golden, make_image


def test_clusters_that_are_plain_to_see() -> None:
    x = torch.tensor([[0.0, 0], [0.1, 0], [0, 0.1], [0.05, 0.05], [5, 5], [5.1, 5], [5, 5.1], [5.05, 5.05]])
    plan = DpcKnn(neighbors=4)(make_image(x), torch.tensor([2]))
    assert plan.size.tolist() == [4, 4]
    torch.testing.assert_close(apply(plan, x), torch.stack([x[:4].mean(0), x[4:].mean(0)]))


def test_equals_the_definition() -> None:
    tokens = make_golden(2)
    x = tokens.x[tokens.candidates].double()
    distance = torch.cdist(x, x) * x.shape[1] ** -0.5
    rho = (-(distance.topk(5, largest=False).values ** 2).mean(1)).exp()
    delta = torch.stack(
        [distance[i][rho > rho[i]].min() if (rho > rho[i]).any() else distance.max() for i in range(len(x))]
    )
    centres = sorted((rho * delta).topk(20).indices.tolist())
    plan = DpcKnn()(tokens, torch.tensor([20]))
    assert plan.kept.tolist() == centres
    nearest = distance[:, centres].argmin(1)
    nearest[centres] = torch.arange(20)
    assert plan.slot[tokens.candidates].tolist() == nearest.tolist()


def test_refuses_impossible_settings() -> None:
    with pytest.raises(ValueError, match="0"):
        DpcKnn(neighbors=0)
