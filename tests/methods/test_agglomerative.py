from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from torch.nn import functional as F

from crtc.clustering import Linkage
from crtc.methods import Agglomerative
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


def test_refuses_unknown_linkage() -> None:
    with pytest.raises(ValueError, match="centroid"):
        Agglomerative("centroid")  # type: ignore[arg-type]
