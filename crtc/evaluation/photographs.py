"""Classify photographs with all tokens and with what each method leaves between two layers, and note what is right."""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from crtc import __version__
from crtc import counts as counting
from crtc.evaluation.parts import Parts, digest, method_digest, weights_digest
from crtc.hosts.classifier import Between, Classifier
from crtc.methods.method import Method
from crtc.retention import Bools
from crtc.tasks.labelled import Labelled
from crtc.tokens import SIGNALS, Plan, Tokens

METHODS = (
    *("random", "uniform_grid", "cls_attention", "tome", "kmeans", "dpc_knn", "dbdpc", "agglomerative", "div_prune"),
    *("vision_zip", "reinforced"),
)
"""What is compared without further words: the controls and the strongest of every family, none of them slow."""
PARTS = (0.5, 0.25, 0.1, 0.04)
"""Share of the patch tokens at the counts that are compared without further words."""
ALL = "all tokens"
Cell = tuple[str, int, bool, int]
"""Label, layer, mass and count."""


@dataclass(frozen=True)
class Classified:
    """All runs over some photographs.

    Args:
        full: whether each image is right with all tokens.
        runs: the same of every label, layer, mass and count.
        milliseconds: planning time per image, of every label, layer and count.
        image: number in the data of every image.
        skipped: labels that could not run, with the reason.
        config: what was asked for, with versions and hardware.
    """

    full: Bools
    runs: dict[Cell, Bools]
    milliseconds: dict[tuple[str, int, int], float]
    image: Int[np.ndarray, " I"]
    skipped: dict[str, str]
    config: dict[str, Any]


class Photographs:
    """Compare methods inside an image classifier.

    The images are drawn at random with a fixed seed, so that fewer are the first of more.

    Args:
        classifier: what classifies.
        data: photographs with their classes.
        methods: by the label of their row.
        layers: in front of which tokens leave, each by itself; a quarter, half and three quarters up without.
        counts: patch tokens that are left per image; `PARTS` of all without.
        masses: settings of mass preservation to run.
        images: how many are classified; all without.
        batch: images side by side.

    Raises:
        ValueError: if there are no methods, layers, counts or masses, or a number is out of range.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: Labelled,
        methods: Mapping[str, Method],
        *,
        layers: Sequence[int] | None = None,
        counts: Sequence[int] | None = None,
        masses: Sequence[bool] = (True,),
        images: int | None = None,
        batch: int = 25,
    ):
        self.classifier, self.data, self.methods = classifier, data, dict(methods)
        depth, patches = classifier.depth, classifier.num_patches
        chosen = [max(1, depth * part // 4) for part in (1, 2, 3)] if layers is None else layers
        left = [max(1, round(part * patches)) for part in PARTS] if counts is None else counts
        self.layers, self.counts = tuple(sorted(set(chosen))), tuple(sorted(set(left), reverse=True))
        self.masses, self.batch = tuple(masses), batch
        self.images = len(data) if images is None else images
        for name in ("methods", "layers", "counts", "masses"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty, expected at least one")
        classifier.check_layers(self.layers)
        if not 1 <= self.counts[-1] <= self.counts[0] <= patches:
            raise ValueError(
                f"counts is {list(left)}, expected numbers from 1 to the {patches} patch tokens of an image"
            )
        if not 1 <= self.images <= len(data):
            raise ValueError(f"images is {self.images}, expected 1 to the {len(data)} of {data.name}")
        if batch < 1:
            raise ValueError(f"batch is {batch}, expected at least 1")
        self._skipped = {label: why for label, method in self.methods.items() if (why := _unable(method, classifier))}

    @property
    def config(self) -> dict[str, Any]:
        """What makes two runs the same."""
        return {
            **self._setting,
            "images": self.images,
            "methods": {label: f"{method}" for label, method in self.methods.items()},
            "weights": {label: weights_digest(method) for label, method in self.methods.items() if method.state_dict()},
        }

    @cached_property
    def _setting(self) -> dict[str, Any]:
        """What the results of every single method depend on beside itself."""
        model = self.classifier.model
        cuda = model.device.type == "cuda"
        return {
            "data": self.data.name,
            "content": self.data.content,
            "model": type(model).__name__,
            "weights_of_model": weights_digest(model),
            "preprocessing": self.classifier.preprocessing,
            "processor": digest(f"{self.classifier.processor}"),
            "attention": model.config._attn_implementation,
            "dtype": str(model.dtype),
            "patches": self.classifier.num_patches,
            "layers": list(self.layers),
            "counts": list(self.counts),
            "masses": list(self.masses),
            "images_per_batch": self.batch,
            "device": torch.cuda.get_device_name(model.device) if cuda else platform.machine(),
            "versions": {"crtc": __version__, **{name: version(name) for name in ("torch", "transformers", "pillow")}},
        }

    def run(self, folder: Path | str | None = None) -> Classified:
        """Classify; with a folder, what is finished is kept there, every method by itself: an interrupted run goes on
        behind it, a longer one behind a shorter one, and a run with one method more runs that one alone.

        Raises:
            ValueError: if no method can run, or an image cannot be read.
        """
        able = {label: method for label, method in self.methods.items() if label not in self._skipped}
        cache = Parts(folder, self._setting)
        keys = {ALL: "full", **{label: method_digest(label, method) for label, method in able.items()}}
        order = np.random.default_rng(0).permutation(len(self.data))[: self.images]
        spans = [(start, min(start + self.batch, self.images)) for start in range(0, self.images, self.batch)]
        names = {span: {label: f"{span[0]:06d}-{span[1]:06d}-{key}" for label, key in keys.items()} for span in spans}
        missing = {span: [label for label in keys if not cache.has(names[span][label])] for span in spans}
        done = sum(stop - start for start, stop in spans if not missing[start, stop])
        found: dict[str, list[_Part]] = {label: [] for label in keys}
        # what is kept already counts as done from the start, so that the remaining time is that of the rest
        with tqdm(total=self.images, initial=done, desc=f"classifying {self.data.name}", unit="image") as bar:
            for span in spans:
                made: dict[str, _Part] = {}
                if missing[span]:
                    made = self._batch(
                        order[slice(*span)], {label: able[label] for label in missing[span] if label != ALL}
                    )
                    for label in missing[span]:
                        cache.save(names[span][label], made[label])
                    bar.update(span[1] - span[0])
                for label in keys:
                    found[label].append(made[label] if label in missing[span] else cache.load(names[span][label]))
        return self._join(found, order)

    def _join(self, found: dict[str, list["_Part"]], order: Int[np.ndarray, " I"]) -> Classified:
        full = np.concatenate([part.full for part in found.pop(ALL)])
        skipped, runs, milliseconds = dict(self._skipped), {}, {}
        for label, parts in found.items():
            if reasons := [part.skipped for part in parts if part.skipped]:
                skipped[label] = reasons[0]
                continue
            for layer, mass, count in parts[0].right:
                runs[label, layer, mass, count] = np.concatenate([part.right[layer, mass, count] for part in parts])
            for layer, count in parts[0].seconds:
                milliseconds[label, layer, count] = 1e3 * sum(part.seconds[layer, count] for part in parts) / len(full)
        if not runs:
            raise ValueError(f"no method can run: {'; '.join(f'{label}: {why}' for label, why in skipped.items())}")
        machine = {"python": platform.python_version(), "threads": torch.get_num_threads()}
        return Classified(full, runs, milliseconds, order, skipped, {**self.config, "machine": machine})

    def _batch(self, chosen: Int[np.ndarray, " B"], methods: Mapping[str, Method]) -> dict[str, "_Part"]:
        """What all tokens and these methods give on some images."""
        labels = torch.from_numpy(self.data.labels[chosen])
        pixels = self.classifier.pixels([self.data.image(int(i)) for i in chosen])
        wanted = {need for method in methods.values() for need in method.needs if need in SIGNALS}
        logits, between = self.classifier.read(pixels, self.layers, wanted)
        made = {ALL: _Part(full=_right(logits, labels))}
        for label, method in methods.items():
            try:
                made[label] = self._run(method, between, labels)
            except _Refused as refused:
                made[label] = _Part(skipped=str(refused))
        return made

    def _run(self, method: Method, between: Mapping[int, Between], labels: Int[Tensor, " B"]) -> "_Part":
        part = _Part()
        for layer in self.layers:
            for count, (plan, seconds) in self._plans(method, between[layer].tokens).items():
                part.seconds[layer, count] = seconds
                for mass in self.masses:
                    logits = self.classifier.shortened(layer, between[layer], plan, mass=mass)
                    part.right[layer, mass, count] = _right(logits, labels)
        return part

    @torch.no_grad()
    def _plans(self, method: Method, tokens: Tokens) -> dict[int, tuple[Plan, float]]:
        """Plans by count, each with its seconds."""
        plans = {}
        try:
            begun = self._now()
            planner = method.planner(tokens)
            shared = self._now() - begun  # a single plan costs it too
            for count in self.counts:
                begun = self._now()
                plan = planner(counting.resolve(tokens.group_sizes, count=count))
                plans[count] = (plan, shared + self._now() - begun)
        except ValueError as error:  # such as a learned method of another width
            raise _Refused(str(error)) from error
        return plans

    def _now(self) -> float:
        """The time, once the device has done what it was told."""
        if self.classifier.model.device.type == "cuda":
            torch.cuda.synchronize(self.classifier.model.device)
        return time.perf_counter()


class _Refused(Exception):
    """A method cannot work on these tokens."""


@dataclass(frozen=True)
class _Part:
    """What a batch of images gave: with all tokens, or of one method by layer, mass and count, or why it was skipped.

    Args:
        full: whether each image is right with all tokens.
        right: whether each image is right.
        seconds: of planning, by layer and count.
        skipped: the reason.
    """

    full: Bools = field(default_factory=lambda: np.zeros(0, dtype=bool))
    right: dict[tuple[int, bool, int], Bools] = field(default_factory=dict)
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)
    skipped: str = ""


def _right(logits: Tensor, labels: Int[Tensor, " B"]) -> Bools:
    return np.asarray(logits.argmax(-1).cpu() == labels)


def _unable(method: Method, classifier: Classifier) -> str:
    """Why a method cannot plan between the layers of a classifier; nothing if it can."""
    if method.cuts(classifier.depth):
        return "it acts inside a language model"
    missing = sorted(method.needs - classifier.signals - {"grid"})
    if "text" in missing:
        return "it reads a question, and a classifier is asked none"
    return f"the classifier gives no {', '.join(missing)}" if missing else ""
