"""What the code of a method's authors keeps on the same tokens.

Each file of `golden` names the repository, its commit and the file whose lines were run on `make_golden`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from crtc.methods import get_method
from crtc.tokens import apply
from tests.making import make_golden

FILES = sorted((Path(__file__).parent / "golden").glob("*.json"))
GOLDEN = [pytest.param(json.loads(file.read_text()), id=file.stem) for file in FILES]


@pytest.mark.parametrize("golden", GOLDEN)
def test_keeps_what_the_authors_code_keeps(golden: dict[str, Any]) -> None:
    method = get_method(golden["method"], **golden["settings"])
    assert len(golden["commit"]) == 40 and golden["cases"]
    for case in golden["cases"]:
        tokens = make_golden(case["seed"])
        plan = method(tokens, torch.tensor([case["count"]]))
        if "kept" in case:
            assert plan.kept.tolist() == case["kept"], case["seed"]
        if "rows" in case:  # some channels of the merged tokens, in the order of the first channel
            expected = torch.tensor(case["rows"])
            rows = apply(plan, tokens.x)[:, : expected.shape[1]]
            torch.testing.assert_close(rows[rows[:, 0].argsort()], expected, atol=1e-5, rtol=0)
        if "sizes" in case:
            assert plan.size.tolist() == case["sizes"], case["seed"]
