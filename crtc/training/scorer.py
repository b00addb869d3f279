"""Train a learned method, `ReinforcedScorer` or one of its peers, through a frozen host: the compressed model is to
answer as the full one does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from crtc.dtypes import NAMES, resolve
from crtc.graph.neighbors import Neighbors
from crtc.hosts import Encoded, encode, encoder_outputs, shorten
from crtc.hosts.dialogue import (
    answer_logits,
    dialogue,
    first_rows,
    logits_and_looks,
    once_per_picture,
    prompts,
    right_questions,
    right_rows,
    shared_logits,
    shortened_targets,
)
from crtc.hosts.embedded import load_host
from crtc.methods import trainable
from crtc.methods.learned import Importance, Learned
from crtc.methods.origin import Origin
from crtc.tasks.picture import Glyphs, JsonLines, Picture, Task
from crtc.tokens import Groups, Tokens
from crtc.training.gates import GATES
from crtc.training.resuming import check_same

COUNTS = (192, 128, 64, 32, 16)
_CALIBRATION = "calibration/"


@dataclass(frozen=True)
class Pupil:
    """A batch for the scorer: prompts, what the full model answers, and the part of them that no question changes.

    Args:
        encoded: rows are questions.
        image_of: the picture of every row.
        question: of every row, several where it has several accepted answers.
        targets: expected token per column.
        teacher: log-probabilities of the full model at the answer positions.
        looks_at: share of every visual token in where the full model looks, groups side by side; None without guidance.
        asked: the prompts without the answers, which the scorer must not see.
        looks: the first row of every picture: the tokens of all pictures, once each.
    """

    encoded: Encoded
    image_of: Int[Tensor, " B"]
    question: Int[Tensor, " B"]
    targets: Int[Tensor, "B L"]
    teacher: Float[Tensor, "A V"]
    looks_at: Float[Tensor, "G M"] | None
    asked: Tokens
    looks: Tokens


class _Batches(IterableDataset[list[Picture]]):
    """Batches `start`, ... of a task, over and over; the same number always gives the same pictures."""

    def __init__(self, task: Task, size: int, start: int, stop: int, seed: int):
        self.task, self.size, self.start, self.stop, self.seed = task, size, start, stop, seed

    def __iter__(self) -> Iterator[list[Picture]]:
        for step in range(self.start, self.stop):
            random = np.random.default_rng([self.seed, step])
            yield [self.task[int(i)] for i in random.integers(len(self.task), size=self.size)]


class _InTurn(IterableDataset[list[Picture]]):
    """All pictures of a task, some at a time."""

    def __init__(self, task: Task, size: int):
        self.task, self.size = task, size

    def __iter__(self) -> Iterator[list[Picture]]:
        for start in range(0, len(self.task), self.size):
            yield [self.task[i] for i in range(start, min(start + self.size, len(self.task)))]


class ScorerTraining(lightning.LightningModule):
    """KL to the full-token answer distribution, through the gate, at counts drawn anew for every batch.

    Args:
        host: the embedded one, or a folder or hub id of a LLaVA.
        data: a file of JSON lines to train on; glyph scenes without.
        calibration: a file of JSON lines that decides when to stop; glyph scenes of the calibration split without.
        scorer: catalogue name of the method to train.
        design: what its constructor takes beside the width.
        gate: `"assignment"` (for scorers that cluster), `"mask"` (needs `mass`), `"noise"`, `"scale"` or `"pool"`.
        counts: drawn from, small ones more often.
        blind_share: share of batches that train without the question, for scorers that work both ways.
        steps: optimiser steps.
        pictures: per step.
        questions: asked about each glyph scene; about pictures of a file, those that it holds.
        learning_rate: of AdamW, after 30 steps of warm-up, falling to zero by a cosine.
        guided_learning_rate: the same of the guided steps, which bear a higher one.
        mass: whether the compressed model reads log-sizes.
        guided: share of the steps that come first and train by attention alone: importance is to be spread like the
            full model's attention to the picture. It tells where the question looks, which the KL alone is too noisy to
            teach, and costs no pass through the compressed model.
        attention_weight: of the same loss beside the KL of the other steps, falling to zero until the end.
        precision: float type of the frozen host; "auto" is the one that is fast where the training runs.
        calibration_pictures: glyph scenes of the calibration split; a file is asked as a whole.
        seed: of weights, pictures, counts and noise.

    Raises:
        ValueError: if the scorer, its design, the gate, a count, a rate, the number of steps or of pictures, or the
            precision is impossible.
    """

    def __init__(
        self,
        host: str = "embedded",
        data: str | None = None,
        calibration: str | None = None,
        scorer: str = "reinforced_scorer",
        design: dict[str, Any] | None = None,
        gate: str = "assignment",
        counts: Sequence[int] = COUNTS,
        blind_share: float = 0.4,
        steps: int = 700,
        pictures: int = 6,
        questions: int = 8,
        learning_rate: float = 5e-4,
        mass: bool = True,
        guided: float = 0.5,
        guided_learning_rate: float = 3e-3,
        attention_weight: float = 0.1,
        precision: str = "auto",
        calibration_pictures: int = 20,
        seed: int = 0,
    ):
        super().__init__()
        kinds = trainable()
        if scorer not in kinds:
            raise ValueError(f"scorer is {scorer!r}, expected one of {', '.join(kinds)}")
        if gate not in GATES:
            raise ValueError(f"gate is {gate!r}, expected one of {sorted(GATES)}")
        if gate == "assignment" and not kinds[scorer].clusters:
            raise ValueError(f"gate is 'assignment' and {scorer} does not cluster, expected another gate")
        if gate == "mask" and not mass:
            raise ValueError("gate is 'mask' and mass is False, expected mass, through which the mask acts")
        if not counts or min(counts) < 1:
            raise ValueError(f"counts is {tuple(counts)}, expected whole numbers of at least 1")
        if not 0 <= blind_share <= 1:
            raise ValueError(f"blind_share is {blind_share}, expected a share from 0 to 1")
        if steps < 1 or pictures < 1:
            raise ValueError(f"steps is {steps} and pictures {pictures}, expected at least 1 each")
        if learning_rate <= 0 or guided_learning_rate <= 0:
            raise ValueError(f"learning rates are {learning_rate} and {guided_learning_rate}, expected more than 0")
        if not 0 <= guided < 1:
            raise ValueError(f"guided is {guided}, expected at least 0 and less than 1")
        if attention_weight < 0:
            raise ValueError(f"attention_weight is {attention_weight}, expected at least 0")
        if precision not in NAMES:
            raise ValueError(f"precision is {precision!r}, expected one of {', '.join(NAMES)}")
        self.save_hyperparameters()
        self._read_host(resolve(precision))
        torch.manual_seed(seed)
        try:
            self.scorer: Learned = kinds[scorer](self._host[0].lm_head.in_features, **(design or {}))
        except TypeError as error:
            raise ValueError(f"design is {design}, which {scorer} does not take: {error}") from error
        self.done = 0
        self.guided_steps = int(guided * steps)
        self.task: Task = JsonLines(data) if data else Glyphs("train", 1_000_000, questions, seed)
        self.calibration_task: Task = (
            JsonLines(calibration) if calibration else Glyphs("calibration", calibration_pictures, 10)
        )

    def _read_host(self, dtype: torch.dtype) -> None:
        model, processor = load_host(self.hparams["host"], dtype=dtype)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._host = (model, processor)  # in a tuple, so that checkpoints hold the scorer alone

    @property
    def host_dtype(self) -> str:
        """Name of the float type that the host runs in, also where `precision` left it to the machine."""
        return str(self._host[0].dtype).removeprefix("torch.")

    def on_fit_start(self) -> None:
        """Read the host anew where the trainer's device is fast in another float type than the one first thought of."""
        dtype = resolve(self.hparams["precision"], self.device)
        if dtype != self._host[0].dtype:
            self._read_host(dtype)

    def prepare(self, pictures: list[Picture]) -> Pupil:
        """Encode each picture once and let the full model answer."""
        model, processor = self._host
        model.to(self.device)  # type: ignore[arg-type]
        talk = dialogue(processor, pictures)
        image_of, targets = talk.image_of.to(self.device), talk.targets.to(self.device)
        inputs = {name: value.to(self.device) for name, value in talk.inputs.items()}
        with torch.no_grad():
            pixels = inputs.pop("pixel_values").to(model.dtype)
            rows = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
            inputs["mm_encoder_outputs"] = encoder_outputs(rows)
            looks_at = None
            if self._looks:
                logits, attended = logits_and_looks(model, inputs, image_of, targets)
            else:
                logits = shared_logits(model, inputs, image_of, targets)
            encoded = encode(model, inputs, image_of=image_of)
            if self._looks:
                tokens = encoded.tokens
                groups = Groups.of(tokens)
                looks_at = groups.gather(attended[tokens.sequence, encoded.column]) * groups.valid
                looks_at = looks_at / looks_at.sum(1, keepdim=True)
        asked = prompts(encoded, targets)
        looks = asked.select(first_rows(image_of))
        question, teacher = talk.question.to(self.device), logits.log_softmax(-1)
        return Pupil(encoded, image_of, question, targets, teacher, looks_at, asked, looks)

    def importance(self, pupil: Pupil, question: bool) -> Importance:
        """Importance for every row; without the question it is computed once per picture."""
        self.scorer.question_aware = question
        groups = Groups.of(pupil.encoded.tokens)
        if not question:
            return self.scorer.importance(pupil.looks).repeat(groups, pupil.image_of)
        neighbors = self.scorer.neighbors(pupil.looks)
        if neighbors is not None:
            neighbors = _spread(neighbors, Groups.of(pupil.looks), Groups.of(pupil.asked), pupil)
        return replace(self.scorer.importance(pupil.asked, neighbors), groups=groups)

    def training_step(self, batch: list[Picture], batch_idx: int) -> Tensor:
        """One batch at one count, with or without the question.

        Raises:
            ValueError: if the loss is not finite.
        """
        counts = self.hparams["counts"]
        random = np.random.default_rng([self.hparams["seed"], self.done, 1])
        likely = np.arange(1, len(counts) + 1, dtype=float)
        count = int(random.choice(sorted(counts, reverse=True), p=likely / likely.sum()))
        question = bool(random.random() >= self.hparams["blind_share"])
        question = question if question in self.scorer.ways else self.scorer.ways[0]
        pupil = self.prepare(batch)
        said = self.importance(pupil, question)
        way = "aware" if question else "blind"
        guided = self.done < self.guided_steps
        total = torch.zeros((), device=self.device)
        if pupil.looks_at is not None:
            faint = torch.finfo(said.logit.dtype).min
            share = said.logit.masked_fill(~said.groups.valid, faint).log_softmax(1)
            looks = F.kl_div(share, pupil.looks_at, reduction="batchmean")
            self.log(f"train/attention_{way}", looks.detach())
            self.log("attention", looks.detach(), prog_bar=True, logger=False)
            fading = self.hparams["attention_weight"] * (1 - self.done / self.hparams["steps"])
            total = total + looks * (1.0 if guided else fading)
        if not guided:
            noise = torch.Generator().manual_seed(int(random.integers(2**31)))
            loss, penalty = self._answers(pupil, said, count, noise, question)
            self.log(f"train/kl_{way}_{count}", loss.detach())
            self.log("kl", loss.detach(), prog_bar=True, logger=False)
            total = total + loss + penalty
        if not bool(total.isfinite()):
            raise ValueError(
                f"loss is {float(total)} after {self.done} steps, expected a finite one; learning_rate is "
                f"{self.hparams['learning_rate']}, guided_learning_rate {self.hparams['guided_learning_rate']}"
            )
        self.done += 1
        return total

    @property
    def _looks(self) -> bool:
        """Whether the rest of the training reads the full model's attention."""
        return bool(self.done < self.guided_steps or self.hparams["attention_weight"] > 0)

    def _answers(
        self, pupil: Pupil, said: Importance, count: int, noise: torch.Generator, question: bool
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""] | float]:
        """KL to the full model behind the gate, and the gate's penalty."""
        tokens = pupil.encoded.tokens
        k = torch.full_like(tokens.group_sizes, count).minimum(tokens.group_sizes)
        through = GATES[self.hparams["gate"]](self.scorer, said, tokens, k, self.done / self.hparams["steps"], noise)
        inputs = shorten(pupil.encoded, through.plan, mass=self.hparams["mass"], positions="keep", rows=through.rows)
        targets = shortened_targets(pupil.encoded, through.plan, pupil.targets)
        logits = self._logits(pupil, inputs, targets, question)
        return F.kl_div(logits.log_softmax(-1), pupil.teacher, log_target=True, reduction="batchmean"), through.penalty

    def _logits(
        self, pupil: Pupil, inputs: dict[str, Any], targets: Int[Tensor, "B S"], question: bool
    ) -> Float[Tensor, "A V"]:
        """What the compressed model answers; pictures that no question changed are read once for all their rows."""
        if question:
            return answer_logits(self._host[0], inputs, targets)[0]
        return shared_logits(self._host[0], once_per_picture(inputs, pupil.image_of), pupil.image_of, targets)

    def validation_step(self, batch: list[Picture], batch_idx: int) -> None:
        """KL and accuracy of the deployed, hard choice at the small counts, in every way in which the scorer works."""
        pupil = self.prepare(batch)
        tokens = pupil.encoded.tokens
        total = []
        for question in self.scorer.ways:
            said = self.importance(pupil, question)
            for count in sorted(self.hparams["counts"])[:3]:
                k = torch.full_like(tokens.group_sizes, count).minimum(tokens.group_sizes)
                plan = self.scorer.plan_from(said, tokens, k)
                inputs = shorten(pupil.encoded, plan, mass=self.hparams["mass"], positions="keep")
                targets = shortened_targets(pupil.encoded, plan, pupil.targets)
                logits = self._logits(pupil, inputs, targets, question)
                expected, row = targets[targets != -100], (targets != -100).nonzero()[:, 0]
                kl = F.kl_div(logits.log_softmax(-1), pupil.teacher, log_target=True, reduction="batchmean")
                right = right_questions(right_rows(logits, expected, row, len(targets)), pupil.question)
                way = "aware" if question else "blind"
                name = f"{way}_{count}"
                self.log(f"calibration/kl_{name}", kl, on_epoch=True, batch_size=len(pupil.targets))
                share = right.float().mean()
                self.log(f"calibration/accuracy_{name}", share, on_epoch=True, batch_size=len(right))
                total.append(kl)
        self.log(
            "calibration/kl", torch.stack(total).mean(), on_epoch=True, batch_size=len(pupil.targets), prog_bar=True
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine, first for the guided steps, then for the rest."""
        rate, first, steps = self.hparams["learning_rate"], self.guided_steps, self.hparams["steps"]
        optimizer = torch.optim.AdamW(self.scorer.parameters(), lr=rate, weight_decay=0.01)

        def scale(step: int) -> float:
            begun, ends = (0, first) if step < first else (first, steps)
            peak = self.hparams["guided_learning_rate"] / rate if step < first else 1.0
            done = min((step - begun) / (ends - begun), 1.0)
            return peak * min(1.0, (step - begun + 1) / 30) * 0.5 * (1 + float(np.cos(np.pi * done)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[list[Picture]]:
        """Training pictures from where the run stands."""
        batches = _Batches(self.task, self.hparams["pictures"], self.done, self.hparams["steps"], self.hparams["seed"])
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> DataLoader[list[Picture]]:
        """The calibration task, in batches of five pictures."""
        return DataLoader(_InTurn(self.calibration_task, 5), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Pictures stay where they are; `prepare` moves what the host reads."""
        return batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of batches seen, the host's float type, and the last figures of the calibration split."""
        checkpoint["done"], checkpoint["host_dtype"] = self.done, self.host_dtype
        checkpoint["calibration"] = {
            name.removeprefix(_CALIBRATION): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith(_CALIBRATION)
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the next batch of the same run.

        Raises:
            ValueError: if the checkpoint is of other settings.
        """
        check_same(checkpoint, self)
        self.done = checkpoint["done"]

    def export(
        self, folder: Path | str, calibration: dict[str, float] | None = None, precision: str | None = None
    ) -> None:
        """Save the scorer as `crtc.methods.trained` reads it, with what is known of its training.

        Args:
            folder: to write into.
            calibration: figures of the calibration split, as `Origin` holds them.
            precision: float type that the host ran in; without, the one that it has now.
        """
        given: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.hparams.items()
            if not name.startswith("_")  # what the command line leaves there
        }
        given["precision"] = precision or self.host_dtype  # "auto" says nothing elsewhere
        for name in ("host", "data", "calibration"):  # folders of this machine say nothing elsewhere
            given[name] = Path(given[name]).name if given[name] and Path(given[name]).exists() else given[name]
        self.scorer.origin = Origin(given.pop("host"), given, calibration or {})
        self.scorer.save_pretrained(folder)


def _spread(neighbors: Neighbors, looks: Groups, groups: Groups, pupil: Pupil) -> Neighbors:
    """Edges found once per picture, for every row that asks about it."""
    local = looks.places(len(pupil.looks))
    place = local[neighbors.index[looks.index]][pupil.image_of]  # [G, M, K]
    target = groups.index.gather(1, place.flatten(1)).view_as(place)
    num, inside = len(pupil.asked), groups.index[groups.valid]
    index = torch.arange(num, device=local.device)[:, None].repeat(1, neighbors.degree)
    index[inside] = target[groups.valid]

    def rows(part: Tensor) -> Tensor:
        full = torch.zeros(num, neighbors.degree, dtype=part.dtype, device=part.device)
        full[inside] = part[looks.index][pupil.image_of][groups.valid]
        return full

    return Neighbors(
        index, rows(neighbors.likeness), rows(neighbors.valid), rows(neighbors.relation), neighbors.relations
    )
