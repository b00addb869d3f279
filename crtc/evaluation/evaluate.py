"""Ask a host the questions of a task with all tokens and with what each method leaves, and note what changed."""

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

from crtc import __version__, cost
from crtc import counts as counting
from crtc.compression import inside_of, looked
from crtc.evaluation.parts import Parts, digest, method_digest, weights_digest
from crtc.hosts import Encoded, Positions, encode, encoder_outputs, shorten
from crtc.hosts.dialogue import (
    Dialogue,
    answer_logits,
    asked,
    dialogue,
    first_rows,
    once_per_picture,
    prompt_of,
    prompts,
    right_questions,
    right_rows,
    shared_logits,
    shortened_targets,
)
from crtc.hosts.view import view_of
from crtc.merging import spread
from crtc.methods.method import Method, keep_all
from crtc.retention import Bools, Floats, evidence_recall, kl_divergence
from crtc.tasks.picture import Picture, Task
from crtc.tokens import LAYER_SIGNALS, LOOK_SIGNALS, SIGNALS

ALL, NO_IMAGE, WRONG_IMAGE = "all tokens", "no image", "wrong image"
CONTROLS = "controls"


@dataclass(frozen=True)
class Run:
    """One row of the table at one count, with an entry for every question.

    Args:
        right: whether every answer token was the likeliest.
        kl: mean over the answer tokens of the KL to the full model, in nats.
        agree: share of answer tokens whose likeliest token is the full model's.
        recall: evidence recall, NaN where there is none.
        milliseconds: planning time per picture and question.
        layer_equivalent: visual tokens of an image that were read, mean over the layers of the language model.
    """

    right: Bools
    kl: Floats
    agree: Floats
    recall: Floats
    milliseconds: float
    layer_equivalent: float = float("nan")


@dataclass(frozen=True)
class Results:
    """All runs of an evaluation.

    Args:
        runs: by method label, mass or not, and count; controls have count 0 and no mass.
        picture: of every question.
        family: of every question.
        aware: which labels look at the question.
        skipped: labels that could not run on this host, with the reason.
        config: what was asked for, with versions and hardware.
    """

    runs: dict[tuple[str, bool, int], Run]
    picture: Int[np.ndarray, " Q"]
    family: tuple[str, ...]
    aware: dict[str, bool]
    skipped: dict[str, str]
    config: dict[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """Methods in the order in which they were given."""
        return tuple(dict.fromkeys(label for label, _, count in self.runs if count))

    @property
    def counts(self) -> tuple[int, ...]:
        """Counts, largest first."""
        return tuple(sorted({count for _, _, count in self.runs if count}, reverse=True))

    def full(self) -> Run:
        """The run with all tokens."""
        return self.runs[ALL, False, 0]

    def able(self, label: str, count: int) -> bool:
        """Whether a method could spend as little."""
        return any((label, mass, count) in self.runs for mass in (False, True))


class Evaluation:
    """Compare methods on a task.

    Args:
        host: model and processor.
        task: what is asked.
        methods: by the label of their row.
        counts: whole tokens per image.
        masses: settings of mass preservation to run.
        positions: whether kept tokens keep their position ids.
        batch: pictures encoded and asked about side by side.
        skipped: labels that are not run, with the reason, for the report.

    Raises:
        ValueError: if there are no methods or counts, or the batch is not positive.
    """

    def __init__(
        self,
        host: tuple[Any, Any],
        task: Task,
        methods: Mapping[str, Method],
        *,
        counts: Sequence[int] = (192, 128, 64, 32, 16),
        masses: Sequence[bool] = (False, True),
        positions: Positions = "keep",
        batch: int = 4,
        skipped: Mapping[str, str] | None = None,
    ):
        if not methods or not counts:
            raise ValueError(f"methods is {list(methods)} and counts {list(counts)}, expected at least one of each")
        if batch < 1:
            raise ValueError(f"batch is {batch}, expected at least 1")
        self.model, self.processor = host
        self.task, self.methods, self.counts, self.masses = task, dict(methods), tuple(counts), tuple(masses)
        self.positions: Positions = positions
        self.batch = batch
        self._given = dict(skipped or {})

    @property
    def config(self) -> dict[str, Any]:
        """What makes two evaluations the same."""
        return {
            **self._setting,
            "methods": {label: f"{method}" for label, method in self.methods.items()},
            "weights": {label: weights_digest(method) for label, method in self.methods.items() if method.state_dict()},
        }

    @cached_property
    def _setting(self) -> dict[str, Any]:
        """What the results of every single method depend on beside itself."""
        return {
            "task": self.task.name,
            "task_size": len(self.task),
            "task_settings": {name: value for name, value in vars(self.task).items() if isinstance(value, int | str)},
            "first_picture": digest([self.task[0].image.tobytes().hex(), f"{self.task[0].questions}"]),
            "counts": list(self.counts),
            "masses": list(self.masses),
            "positions": self.positions,
            "pictures_per_batch": self.batch,
            "dtype": str(self.model.dtype),
            "host": weights_digest(self.model),
            "processor": digest(f"{getattr(self.processor, 'image_processor', None)} {prompt_of(self.processor, '')}"),
            "device": self._device,
            "versions": {"crtc": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        }

    @property
    def _device(self) -> str:
        device = self.model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()

    def run(self, folder: Path | str | None = None) -> Results:
        """Evaluate; with a folder, what is finished is kept there, every method by itself: an interrupted run goes on
        behind it, and a run with one method more asks that one alone.
        """
        config = self.config
        cache = Parts(folder, self._setting)
        keys = {label: method_digest(label, method) for label, method in self.methods.items()}
        keys[CONTROLS] = CONTROLS
        found: dict[str, list[_Part]] = {label: [] for label in keys}
        spans = self._spans()
        done = {start for start, _ in spans if all(cache.has(_name(start, key)) for key in keys.values())}
        # What was done before this run took no time in it, so that it must not count as fast.
        with tqdm(
            total=len(spans), initial=len(done), desc=f"evaluating on {self.task.name}", unit="batch"
        ) as progress:
            for start, stop in spans:
                names = {label: _name(start, key) for label, key in keys.items()}
                parts = {label: cache.load(name) for label, name in names.items() if cache.has(name)}
                missing = [label for label in keys if label not in parts]
                if missing:
                    pictures = [self.task[i] for i in range(start, stop)]
                    made = self._batch(pictures, [label for label in missing if label != CONTROLS])
                    for label in missing:
                        parts[label] = made[label]
                        cache.save(names[label], parts[label])
                for label in keys:
                    found[label].append(parts[label])
                progress.update(start not in done)
        return self._join(found, config)

    def _spans(self) -> list[tuple[int, int]]:
        """Batches of pictures, the last one not of a single picture: it lends the others their wrong image."""
        starts = list(range(0, len(self.task), self.batch))
        if len(starts) > 1 and len(self.task) - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], len(self.task)], strict=True))

    def _join(self, found: dict[str, list["_Part"]], config: dict[str, Any]) -> Results:
        controls = found.pop(CONTROLS)
        sizes = [len(part.questions) for part in controls]
        runs = {
            (name, False, 0): _joined([part.controls[name] for part in controls], sizes)
            for name in controls[0].controls
        }
        skipped = dict(self._given)
        for label, parts in found.items():
            reasons = [part.skipped for part in parts if part.skipped]
            if reasons:
                skipped[label] = reasons[0]
                continue
            for mass, count in parts[0].runs:
                runs[label, mass, count] = _joined([part.runs[mass, count] for part in parts], sizes)
        if not any(count for _, _, count in runs):
            reasons = [f"{label}: {reason}" for label, reason in skipped.items()]
            raise ValueError(f"no method can run on this host: {'; '.join(reasons)}")
        machine = {
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        }
        return Results(
            runs,
            np.repeat(np.arange(len(self.task)), [n for part in controls for n in part.questions]),
            tuple(family for part in controls for family in part.families),
            {label: method.question_aware for label, method in self.methods.items()},
            skipped,
            {**config, "machine": machine},
        )

    @torch.no_grad()
    def _batch(self, pictures: list[Picture], labels: Sequence[str]) -> dict[str, "_Part"]:
        """What the controls and these methods give on some pictures."""
        talk = dialogue(self.processor, pictures)
        device = self.model.device
        image_of, targets = talk.image_of.to(device), talk.targets.to(device)
        inputs = {name: value.to(device) for name, value in talk.inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        methods = {label: self.methods[label] for label in labels}
        wanted = {need for method in methods.values() for need in method.needs if need in SIGNALS}
        encoded = encode(self.model, inputs, wanted, image_of=image_of)
        seen = prompts(encoded, targets)
        looks = seen.select(first_rows(image_of))
        images = [looks.x[looks.group == number] for number in range(len(pictures))]
        text = {name: value for name, value in inputs.items() if name != "pixel_values"}
        whole = {**text, "mm_encoder_outputs": encoder_outputs(images)}
        logits = shared_logits(self.model, whole, image_of, targets)
        judge = _Judge(logits, targets, talk.question.to(device))
        every = float(looks.group_sizes.double().mean())
        controls = {ALL: judge(logits, recall=None, seconds=0.0, read=every)}
        if len(pictures) > 1:
            wrong = shared_logits(self.model, whole, (image_of + 1) % len(pictures), targets)
            controls[WRONG_IMAGE] = judge(wrong, recall=None, seconds=0.0, read=every)
        controls[NO_IMAGE] = judge(_without_image(encoded, talk, targets), recall=None, seconds=0.0, read=0.0)
        questions = [question for picture in pictures for question in picture.questions]
        made = {
            CONTROLS: _Part(
                controls=controls,
                questions=tuple(len(picture.questions) for picture in pictures),
                families=tuple(question.family for question in questions),
            )
        }
        boxes = [questions[int(i)].boxes for i in talk.question]
        views = [view_of(self.processor, *pictures[int(i)].image.size) for i in image_of]
        depth = self.model.get_decoder().config.get_text_config().num_hidden_layers
        for label, method in methods.items():
            inside = bool(method.cuts(depth))
            missing = method.missing(looks) - frozenset(LAYER_SIGNALS if inside else LOOK_SIGNALS)
            if missing:
                made[label] = _Part(skipped=f"the host gives no {', '.join(sorted(missing))}")
                continue
            if inside:
                made[label] = self._inside(method, encoded, targets, judge, boxes, views)
                continue
            runs: dict[tuple[bool, int], Run] = {}
            tokens, rows = (seen, torch.arange(len(image_of))) if method.question_aware else (looks, image_of)
            begun = self._now()
            tokens, first = looked(encoded, method, tokens, asked(encoded, targets))
            planner = method.planner(tokens)
            shared = self._now() - begun  # a single plan costs it too
            for count in self.counts:
                k = counting.resolve(tokens.group_sizes, count=count)
                begun = self._now()
                plan = planner(k)
                seconds = (shared + self._now() - begun) / tokens.num_groups
                plan = spread(plan, tokens, encoded.tokens, rows.to(device))
                recall = evidence_recall(encoded.tokens, plan, boxes, views).numpy()
                short_targets = shortened_targets(encoded, plan, targets)
                for mass in self.masses:
                    short = shorten(encoded, plan, mass=mass, positions=self.positions)
                    if method.question_aware:
                        logits = answer_logits(self.model, short, short_targets)[0]
                    else:
                        short = once_per_picture(short, image_of)
                        logits = shared_logits(self.model, short, image_of, short_targets)
                    runs[mass, count] = judge(logits, recall=recall, seconds=seconds, read=count + first)
            made[label] = _Part(runs=runs)
        return made

    def _now(self) -> float:
        """The time, once the device has done what it was told."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()

    def _inside(
        self,
        method: Method,
        encoded: Encoded,
        targets: Int[Tensor, "B L"],
        judge: "_Judge",
        boxes: list[Any],
        views: list[Any],
    ) -> "_Part":
        """What a method gives that drops tokens between the layers; counts that it cannot spend stay out."""
        runs: dict[tuple[bool, int], Run] = {}
        reason = ""
        whole = shorten(encoded, keep_all(encoded.tokens), mass=False, positions="keep")
        for count in self.counts:
            for mass in self.masses:
                try:
                    context = inside_of(encoded, method, count=count, mass=mass, seen=asked(encoded, targets))
                except ValueError as error:
                    reason = reason or str(error)
                    continue
                with context as cuts:
                    logits = answer_logits(self.model, whole, targets)[0]
                read = float(cost.layer_equivalent(cuts.counts).mean())
                recall = evidence_recall(encoded.tokens, cuts.plan, boxes, views).numpy()
                seconds = cuts.seconds / encoded.tokens.num_groups
                runs[mass, count] = judge(logits, recall=recall, seconds=seconds, read=read)
        return _Part(runs=runs, skipped="" if runs else reason)


@dataclass(frozen=True)
class _Part:
    """What a batch of pictures gave: the runs of one method by mass and count, why it was skipped, or the controls."""

    runs: dict[tuple[bool, int], Run] = field(default_factory=dict)
    skipped: str = ""
    controls: dict[str, Run] = field(default_factory=dict)
    questions: tuple[int, ...] = ()  # of every picture
    families: tuple[str, ...] = ()  # of every question


def _name(start: int, key: str) -> str:
    """Of the part that the pictures from `start` on gave."""
    return f"{start:06d}-{key}"


def _joined(pieces: list[Run], pictures: list[int]) -> Run:
    """One run from those of some batches, of so many pictures each."""
    right, kl, agree, recall = (
        np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("right", "kl", "agree", "recall")
    )
    milliseconds, read = (
        float(np.average([getattr(piece, name) for piece in pieces], weights=pictures))
        for name in ("milliseconds", "layer_equivalent")
    )
    return Run(right, kl, agree, recall, milliseconds, read)


class _Judge:
    """Compares logits at the answer positions with those of the full model, question by question.

    A question is right if any of its accepted answers is; KL and agreement are read along its reference answer.
    """

    def __init__(self, full: Tensor, targets: Int[Tensor, "B L"], question: Int[Tensor, " B"]):
        asked = targets != -100
        self.expected, self.row, self.rows = targets[asked], asked.nonzero()[:, 0], len(targets)
        self.teacher = full.log_softmax(-1)
        self.question = question
        self.reference = torch.ones_like(question, dtype=torch.bool)
        self.reference[1:] = question.diff() != 0

    def __call__(self, logits: Tensor, *, recall: Floats | None, seconds: float, read: float) -> Run:
        right = right_questions(right_rows(logits, self.expected, self.row, self.rows), self.question)
        kl = kl_divergence(self.teacher, logits)
        agree = (logits.argmax(-1) == self.teacher.argmax(-1)).float()
        length = torch.bincount(self.row, minlength=self.rows)

        def mean(values: Tensor) -> Floats:
            rows = torch.zeros(self.rows, device=values.device).index_add(0, self.row, values) / length
            return np.asarray(rows[self.reference].double().cpu())

        told = np.full(len(right), np.nan) if recall is None else recall[self.reference.cpu().numpy()]
        return Run(right.cpu().numpy(), mean(kl), mean(agree), told, seconds * 1e3, read)


def _without_image(encoded: Encoded, talk: Dialogue, targets: Int[Tensor, "B L"]) -> Tensor:
    """Logits of the prompts without their image tokens: what the question alone gives away."""
    ids = encoded.inputs["input_ids"]
    stays = ids != encoded.model.config.image_token_id
    width = int(stays.sum(1).max())
    order = torch.argsort((~stays).int(), dim=1, stable=True)[:, :width]
    real = stays.gather(1, order)
    inputs = {
        "input_ids": ids.gather(1, order),
        "attention_mask": encoded.inputs["attention_mask"].gather(1, order) * real,
        "position_ids": order,
    }
    return answer_logits(encoded.model, inputs, targets.gather(1, order).masked_fill(~real, -100))[0]
