"""Whether importance needs a threshold of its host: the picture's own moments against fixed cosines, as tokens lie."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.evaluation.evaluate import Evaluation
from crtc.evaluation.photographs import Photographs
from crtc.evaluation.report import finite
from crtc.hosts.classifier import Classifier
from crtc.methods import Method, Reinforced
from crtc.retention import Interval, difference, ratio, resamples
from crtc.tasks.labelled import Labelled
from crtc.tasks.picture import Task
from crtc.tokens import Groups, Plan, Signals, Tokens
from crtc.ward import FAINT

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
FIXED = 0.5
"""The threshold that is taken to other geometries."""
SLOPE = 0.05
COUNTS = (32, 16, 8)
MOMENTS = "own moments"


class FixedThreshold(Reinforced):
    """`Reinforced` with a soft degree that counts cosines above a fixed threshold, the same for all pictures.

    Args:
        threshold: cosine at which a token counts half.
    """

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold

    def weight(self, tokens: Tokens) -> tuple[Groups, Float[Tensor, "G M D"], Float[Tensor, "G M"]]:
        """As there."""
        groups = Groups.of(tokens)
        x = F.normalize(groups.gather(tokens.x.float()), dim=-1)
        near = torch.sigmoid((x @ x.transpose(1, 2) - self.threshold) / SLOPE) * groups.valid[:, None]
        weight = groups.valid / near.sum(-1).clamp(min=FAINT)
        return groups, x, (weight / weight.amax(1, keepdim=True)).clamp(min=FAINT) * groups.valid


class Seen(Method):
    """A method that is shown the tokens otherwise than they are; its plan is carried out on those that they are.

    Args:
        inner: that plans.
        geometry: name of `GEOMETRIES`.
    """

    source = "study"
    family = "control"

    def __init__(self, inner: Method, geometry: str):
        super().__init__()
        self.inner, self.geometry = inner, geometry
        if geometry == "before the projector":
            self.needs = frozenset({"features"})

    def planner(self, tokens: Tokens) -> Callable[[Int[Tensor, " G"]], Plan]:
        """The planner of the method that is shown other tokens."""
        shown = GEOMETRIES[self.geometry](tokens)
        return self.inner.planner(Tokens(shown, tokens.kind, tokens.sequence, tokens.group, tokens.grid, Signals()))

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """The plan of the method that is shown other tokens."""
        return self.planner(tokens)(k)

    def extra_repr(self) -> str:
        """With the settings of the method that plans, which is printed as a part of this one."""
        return f"geometry={self.geometry!r}"


def _moved(tokens: Tokens) -> Float[Tensor, "N D"]:
    direction = torch.randn(tokens.x.shape[1], generator=torch.Generator().manual_seed(3)).to(tokens.x)
    length = tokens.x[tokens.candidates].norm(dim=-1).mean()
    moved: Tensor = tokens.x + 2 * length * direction / direction.norm()
    return moved


def _turned(tokens: Tokens) -> Float[Tensor, "N D"]:
    width = tokens.x.shape[1]
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    turned: Tensor = tokens.x @ torch.linalg.qr(drawn)[0].to(tokens.x)
    return turned


def _before(tokens: Tokens) -> Float[Tensor, "N D"]:
    assert tokens.signals.features is not None
    return tokens.signals.features


GEOMETRIES: dict[str, Callable[[Tokens], Float[Tensor, "N D"]]] = {
    "behind the projector": lambda tokens: tokens.x,
    "before the projector": _before,
    "twice the mean norm added": _moved,
    "turned": _turned,
    "a hundred times as long": lambda tokens: 100 * tokens.x,
}
"""How tokens of the host are shown."""


def geometries(
    host: tuple[Any, Any],
    task: Task,
    folder: Path | str,
    *,
    classifier: Classifier | None = None,
    data: Labelled | None = None,
    images: int | None = None,
    pictures_per_batch: int = 4,
) -> str:
    """Run the study, going on where it stopped; write `geometries.json` and `table.md`, give the table.

    Args:
        host: model and processor.
        task: what is asked.
        folder: of what is written.
        classifier: a vision transformer, whose layers are geometries as well; none without.
        data: photographs that it classifies.
        images: how many of them.
        pictures_per_batch: of the host.
    """
    folder = Path(folder)
    methods: dict[str, Method] = {f"fixed {t} | behind the projector": FixedThreshold(t) for t in THRESHOLDS}
    for geometry in GEOMETRIES:
        methods[f"{MOMENTS} | {geometry}"] = Seen(Reinforced(), geometry)
        methods[f"fixed {FIXED} | {geometry}"] = Seen(FixedThreshold(FIXED), geometry)
    results = Evaluation(host, task, methods, counts=COUNTS, masses=(True,), batch=pictures_per_batch).run(folder)
    full, draws = results.full().right, resamples(results.picture)
    rows = []
    for label in results.labels:
        form, _, geometry = label.partition(" | ")
        for count in results.counts:
            right = results.runs[label, True, count].right
            ours = results.runs[f"{MOMENTS} | {geometry}", True, count].right
            gap = vars(difference(ours, right, full, draws))
            rows.append(_row(geometry, form, count, vars(ratio(right, full, draws)), gap))
    found = {"config": results.config, "questions": len(full), "rows": rows}
    if classifier is not None and data is not None:
        more, found["photographs"] = _photographs(classifier, data, folder, images)
        rows += more
    (folder / "geometries.json").write_text(json.dumps(finite(found), indent=1) + "\n")
    (folder / "table.md").write_text(markdown(found))
    return (folder / "table.md").read_text()


def _row(geometry: str, form: str, count: int, relative: Any, gap: Any) -> dict[str, Any]:
    return {"geometry": geometry, "form": form, "count": count, "relative": relative, "moments_minus_this": gap}


def _photographs(
    classifier: Classifier, data: Labelled, folder: Path, images: int | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The same of the layers of a classifier, at a tenth and a twenty-fifth of its patch tokens; and what was asked."""
    methods: dict[str, Method] = {MOMENTS: Reinforced(), f"fixed {FIXED}": FixedThreshold(FIXED)}
    counts = [max(1, round(part * classifier.num_patches)) for part in (0.1, 0.04)]
    found = Photographs(classifier, data, methods, counts=counts, images=images).run(folder)
    draws = resamples(np.arange(len(found.full)))
    rows = []
    for (label, layer, _, count), right in found.runs.items():
        ours = found.runs[MOMENTS, layer, True, count]
        gap = vars(difference(ours, right, found.full, draws))
        rows.append(_row(f"{data.name}, layer {layer}", label, count, vars(ratio(right, found.full, draws)), gap))
    return rows, found.config


def markdown(found: dict[str, Any]) -> str:
    """One line for every geometry and form: its accuracies, and how much the picture's own moments are ahead."""
    lines = [
        f"{found['questions']} questions of {found['config']['task']}; accuracy relative to all tokens in percent with "
        f"mass, and in the next column what the picture's own moments keep more, in points. 95 % bootstrap intervals.",
        "",
        "| geometry | degree | tokens: accuracy | ahead |",
        "|---|---|---|---|",
    ]
    keys = dict.fromkeys((row["geometry"], row["form"]) for row in found["rows"])
    for geometry, form in keys:
        here = [row for row in found["rows"] if (row["geometry"], row["form"]) == (geometry, form)]
        cells = "<br>".join(f"{row['count']}: {Interval(**row['relative'])}" for row in here)
        gaps = "<br>".join("" if form == MOMENTS else str(Interval(**row["moments_minus_this"])) for row in here)
        lines.append(f"| {geometry} | {form} | {cells} | {gaps} |")
    return "\n".join(lines) + "\n"
