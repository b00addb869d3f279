from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from torch.nn import functional as F

from crtc.clustering import Linkage, agglomerate, merge_step_by_step
from crtc.methods import Agglomerative
from crtc.similarity import cosine
from crtc.tokens import apply
from tests.making import make_golden


@pytest.mark.parametrize("linkage", ["average", "single", "complete", "ward"])
@pytest.mark.parametrize("count", [3, 20, 100])
def test_equals_scikit_learn(linkage: Linkage | Literal["ward"], count: int) -> None:
    tokens = make_golden(6)
    x = tokens.x[tokens.candidates]
    metric = "euclidean" if linkage == "ward" else "cosine"
    direction = F.normalize(x.double(), dim=-1).numpy()
    expected = AgglomerativeClustering(count, metric=metric, linkage=linkage).fit_predict(direction)
    plan = Agglomerative(linkage)(tokens, torch.tensor([count]))
    slot = plan.slot[tokens.candidates].numpy()
    together = slot[:, None] == slot
    np.testing.assert_array_equal(together, expected[:, None] == expected)
    rows = apply(plan, tokens.x)
    for place in plan.size.topk(1).indices.tolist():
        torch.testing.assert_close(rows[place], x[slot == place].mean(0))
        inside = F.normalize(x[slot == place], dim=-1)
        nearest = (inside @ x[slot == place].mean(0)).argmax()
        assert int(plan.kept[place]) == int((slot == place).nonzero()[0][nearest])


@pytest.mark.parametrize("linkage", ["average", "single", "complete"])
def test_the_form_for_a_gpu_is_equal(linkage: Linkage) -> None:
    torch.manual_seed(0)
    valid = torch.arange(40) < torch.tensor([40, 25, 7, 1])[:, None]
    distance = 1 - cosine(torch.randn(4, 40, 8) * valid[..., None])
    k = torch.tensor([12, 25, 1, 1])
    label = agglomerate(distance, valid, k, linkage)
    assert torch.equal(label, merge_step_by_step(distance, valid, k, linkage))
    assert [len(row[real].unique()) for row, real in zip(label, valid, strict=True)] == k.tolist()


def test_refuses_unknown_linkage() -> None:
    with pytest.raises(ValueError, match="centroid"):
        Agglomerative("centroid")  # type: ignore[arg-type]
