"""Train the embedded host: a stock LLaVA that answers questions about glyph scenes.

Cheap on two CPU cores by three means. Many questions share one image in one sequence (block mask). The first stage sees
small scenes, windows of the final position grid, at a fifth of the cost. Dense per-patch labels supervise the projected
visual tokens beside the answers, and the [CLS] state learns which colour-kind pairs the scene holds, so that [CLS]
attention means something.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.modeling_clip import CLIPAttention

from crtc.tasks.glyphs.photographs import Split
from crtc.tasks.glyphs.questions import FAMILIES, LESSONS, ask
from crtc.tasks.glyphs.scene import COLORS, NUMBER, PATCH, SHAPES, Scene, make_scene
from crtc.tasks.glyphs.tokenizer import PROMPT, make_tokenizer

GRID = 24
IGNORE = -100
HEADS = {"kind": 19, "color": 9, "place": 4, "middle": 2, "size": 7, "row": GRID, "column": GRID}
"""Classes of every dense label."""
TURNS = (
    *(*FAMILIES, *LESSONS, "place", "place", "size"),
    *("number", "count", "relation", "compare", "twohop", "twohop"),
)
"""Families as training asks them: those that take longer to learn come more often."""
STAGES = ("patches", "windows", "whole-patches", "full")


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def make_host(
    *, hidden: int = 192, vision_layers: int = 5, text_layers: int = 5, head: int = 32
) -> LlavaForConditionalGeneration:
    """An untrained stock LLaVA: CLIP tower with [CLS] on 576 patches, Llama decoder, glyph vocabulary."""
    tokenizer = _tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=vision_layers,
        num_attention_heads=hidden // head,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        projection_dim=hidden,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=text_layers,
        num_attention_heads=hidden // head,
        num_key_value_heads=hidden // head,
        head_dim=head,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=cast(int, tokenizer.convert_tokens_to_ids("<image>")),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
    )
    host = LlavaForConditionalGeneration(config)
    _start_local(host.model.vision_tower)
    return host


def _start_local(tower: CLIPVisionModel) -> None:
    """Begin with neighbours attending to each other: 2-D sine positions, and keys that equal queries.

    From random tables the tower needs thousands of steps to find out which patches touch; this is only a start, every
    weight stays trainable (positions as in MAE, attention after Trockman and Kolter, 2023, "Mimetic initialization").
    """
    width = tower.config.hidden_size
    frequency = 1 / 30 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(GRID)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], 1)
    table = torch.cat([wave[:, None].expand(-1, GRID, -1), wave[None].expand(GRID, -1, -1)], -1).flatten(0, 1)
    with torch.no_grad():
        tower.embeddings.position_embedding.weight[1:] = 1.2 * table
        tower.embeddings.patch_embedding.weight.mul_(10)  # keeps pace with the positions under the layer norm
        for layer in tower.encoder.layers:
            attention = cast(CLIPAttention, layer.self_attn)
            nn.init.normal_(attention.q_proj.weight, std=width**-0.5)
            attention.k_proj.weight.copy_(attention.q_proj.weight)


@dataclass(frozen=True)
class PackedScenes:
    """A batch of scenes, each with several questions behind one another in a single text."""

    pixels: Float[Tensor, "B 3 H W"]
    patch: Int[Tensor, "B V"]  # index of every patch in the 24 x 24 grid
    labels: dict[str, Int[Tensor, "B V"]]
    presence: Float[Tensor, "B P"]  # which colour-kind pairs the scene holds
    ids: Int[Tensor, "B L"]  # questions and answers
    segment: Int[Tensor, "B L"]  # question that a token belongs to, -1 padding
    position: Int[Tensor, "B L"]  # place in its question
    targets: Int[Tensor, "B L"]  # next token where it is an answer token, else -100
    families: Int[Tensor, "B Q"]

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, *args: Any, **kwargs: Any) -> "PackedScenes":
        """The same batch on another device, as `Tensor.to`."""
        moved = {f.name: getattr(self, f.name).to(*args, **kwargs) for f in fields(self) if f.name != "labels"}
        return PackedScenes(**moved, labels={name: label.to(*args, **kwargs) for name, label in self.labels.items()})


def pack(scenes: list[Scene], questions: int, random: np.random.Generator) -> PackedScenes:
    """Ask `questions` questions about each scene and pack them."""
    tokenizer = _tokenizer()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    side = scenes[0].image.shape[0] // PATCH
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    corner = torch.from_numpy(random.integers(0, GRID - side + 1, (len(scenes), 2)))
    steps = torch.arange(side)
    patch = (((corner[:, :1] + steps) * GRID)[:, :, None] + (corner[:, 1:] + steps)[:, None, :]).flatten(1)
    labels = {
        name: torch.from_numpy(np.stack([getattr(scene.labels, name) for scene in scenes])).flatten(1)
        for name in ("kind", "color", "place", "middle", "size")
    }
    labels |= {"row": patch // GRID, "column": patch % GRID}  # where it is must survive the tower, for relations
    kinds = (*SHAPES, NUMBER)
    presence = torch.zeros(len(scenes), len(COLORS) * len(kinds))
    rows: list[dict[str, list[int]]] = []
    families = torch.zeros(len(scenes), questions, dtype=torch.long)
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            presence[index, list(COLORS).index(thing.color) * len(kinds) + kinds.index(thing.kind)] = 1
        row: dict[str, list[int]] = {"ids": [], "segment": [], "position": [], "targets": []}
        for number, question in enumerate(
            ask(scene, random, questions, start=int(random.integers(len(TURNS))), families=TURNS)
        ):
            families[index, number] = [*FAMILIES, *LESSONS].index(question.family)
            prompt = tokenizer(PROMPT.format(question=question.text)).input_ids
            prompt = prompt[prompt.index(image_id) + 1 :]
            answer = [*tokenizer(question.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            row["ids"] += prompt + answer[:-1]
            row["targets"] += [IGNORE] * (len(prompt) - 1) + answer
            row["segment"] += [number] * (len(prompt) + len(answer) - 1)
            row["position"] += range(len(prompt) + len(answer) - 1)
        rows.append(row)
    fill = {"ids": tokenizer.pad_token_id, "segment": -1, "position": 0, "targets": IGNORE}
    text = {
        name: nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value
        )
        for name, value in fill.items()
    }
    return PackedScenes(
        pixels, patch, labels, presence, text["ids"], text["segment"], text["position"], text["targets"], families
    )


class _Scenes(IterableDataset[PackedScenes]):
    """Batches `start`, `start + 1`, ... of a stage; the same index always gives the same batch."""

    def __init__(
        self,
        split: Split,
        seed: int,
        start: int,
        stop: int,
        batch_size: int,
        cells: int,
        things: tuple[int, int],
        questions: int,
    ):
        self.split, self.seed, self.start, self.stop = split, seed, start, stop
        self.batch_size, self.cells, self.things, self.questions = batch_size, cells, things, questions

    def __iter__(self) -> Iterator[PackedScenes]:
        for step in range(self.start, self.stop):
            numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
            scenes = [
                make_scene(self.split, self.seed, number, cells=self.cells, things=self.things) for number in numbers
            ]
            yield pack(scenes, self.questions, np.random.default_rng([self.seed, step, self.cells]))


class HostTraining(lightning.LightningModule):
    """Answers by next-token prediction, patches by dense labels, [CLS] by what the scene holds.

    Args:
        stage: `"patches"` trains the tower alone on 96 x 96 scenes placed anywhere in the position grid, `"windows"`
            the whole model on the same, `"full"` on 192 x 192.
        steps: optimiser steps of this stage; the learning rate falls linearly to zero at its end.
        batch_size: scenes per step.
        questions: questions per scene.
        learning_rate: of Muon (hidden matrices) and AdamW (all other parameters).
        dense_weight: weight of the per-patch losses.
        start_from: weights of an earlier stage to begin with, or the folder of a host, whose heads begin anew.
        seed: of scenes, questions and initial weights.
    """

    def __init__(
        self,
        stage: str = "full",
        freeze_tower: bool = False,
        steps: int = 1000,
        batch_size: int = 32,
        questions: int = 12,
        learning_rate: float = 2e-3,
        dense_weight: float = 1.0,
        start_from: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}, expected one of {STAGES}")
        self.save_hyperparameters()
        self.automatic_optimization = False
        torch.manual_seed(seed)
        self.host = make_host()
        width = self.host.lm_head.in_features
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in HEADS.items()})
        self.presence = nn.Linear(width, len(COLORS) * (len(SHAPES) + 1))
        self.done = 0  # batches seen, so that a resumed run goes on with the next one
        if start_from is not None and Path(start_from).is_dir():
            begun = LlavaForConditionalGeneration.from_pretrained(start_from, dtype=torch.float32)
            self.host.load_state_dict(begun.state_dict())
        elif start_from is not None:
            self.load_state_dict(torch.load(start_from, weights_only=True, map_location="cpu")["state_dict"])
        self.host.model.vision_tower.requires_grad_(not freeze_tower)

    def see(self, batch: PackedScenes) -> tuple[Tensor, Tensor]:
        """Projected visual tokens and the [CLS] state."""
        model = self.host.model
        tower = model.vision_tower
        table = tower.embeddings.position_embedding.weight
        patches = tower.embeddings.patch_embedding(batch.pixels).flatten(2).transpose(1, 2) + table[batch.patch + 1]
        summary = (tower.embeddings.class_embedding + table[0]).expand(len(batch), 1, -1)
        states = tower.encoder(inputs_embeds=tower.pre_layrnorm(torch.cat([summary, patches], 1))).last_hidden_state
        return model.multi_modal_projector(states[:, 1:]), tower.post_layernorm(states[:, 0])

    def answer(self, batch: PackedScenes, visual: Tensor) -> Tensor:
        """Logits at every text position."""
        model = self.host.model
        prefix = self._prefix.to(batch.ids.device).expand(len(batch), -1)
        embed = model.get_input_embeddings()
        sequence = torch.cat([embed(prefix), visual, embed(batch.ids)], 1)
        position = torch.cat(
            [
                torch.arange(prefix.shape[1], device=prefix.device).expand_as(prefix),
                prefix.shape[1] + batch.patch,
                prefix.shape[1] + GRID * GRID + batch.position,
            ],
            1,
        )
        head = prefix.shape[1] + visual.shape[1]
        owner = torch.cat([batch.segment.new_full((len(batch), head), -2), batch.segment], 1)
        visible = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool, device=owner.device).tril()
        visible = visible & ((owner[:, None, :] == -2) | (owner[:, None, :] == owner[:, :, None]))
        mask = torch.zeros(visible.shape, dtype=sequence.dtype, device=owner.device).masked_fill(~visible, -1e4)[
            :, None
        ]
        hidden = model.language_model(
            inputs_embeds=sequence, attention_mask=mask, position_ids=position, use_cache=False
        )
        return cast(Tensor, self.host.lm_head(hidden.last_hidden_state[:, head:]))

    @property
    def _prefix(self) -> Tensor:
        tokenizer = _tokenizer()
        ids = tokenizer(PROMPT).input_ids
        return torch.tensor([ids[: ids.index(tokenizer.convert_tokens_to_ids("<image>"))]])

    def _losses(self, batch: PackedScenes) -> tuple[dict[str, Tensor], Tensor | None]:
        visual, summary = self.see(batch)
        losses = {
            name: F.cross_entropy(head(visual).flatten(0, 1).float(), batch.labels[name].flatten(), ignore_index=IGNORE)
            for name, head in self.heads.items()
        }
        losses["presence"] = F.binary_cross_entropy_with_logits(self.presence(summary).float(), batch.presence)
        if self.hparams["stage"].endswith("patches"):
            return losses, None
        logits = self.answer(batch, visual)
        losses["answer"] = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORE)
        return losses, logits

    def training_step(self, batch: PackedScenes, batch_idx: int) -> None:
        """One step of both optimisers."""
        left = max(0.0, 1 - self.done / self.hparams["steps"])
        scale = min(1.0, (self.done + 1) / 50, left / 0.7)
        losses, _ = self._losses(batch)
        dense = torch.stack([losses[name] for name in self.heads]).sum()
        loss = losses.get("answer", 0) + losses["presence"] + self.hparams["dense_weight"] * dense
        optimizers = cast(list[LightningOptimizer], self.optimizers())
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.hparams["learning_rate"] * scale
            optimizer.step()
        self.done += 1
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})

    def validation_step(self, batch: PackedScenes, batch_idx: int) -> None:
        """Share of questions of each family whose every answer token is the likeliest one."""
        losses, logits = self._losses(batch)
        self.log_dict(
            {f"validation/{name}": value for name, value in losses.items()}, batch_size=len(batch), on_epoch=True
        )
        if logits is None:
            return
        wrong = (logits.argmax(-1) != batch.targets) & (batch.targets != IGNORE)
        questions = batch.families.shape[1]
        failed = torch.zeros(len(batch), questions + 1, dtype=torch.long, device=wrong.device)
        failed.scatter_add_(1, batch.segment % (questions + 1), wrong.long())
        right = (failed[:, :questions] == 0).float()
        for index, name in enumerate([*FAMILIES, *LESSONS]):
            chosen = batch.families == index
            if chosen.any():
                self.log(f"accuracy/{name}", right[chosen].mean(), batch_size=int(chosen.sum()), on_epoch=True)
        self.log("accuracy", right.mean(), batch_size=right.numel(), on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the hidden matrices, AdamW for embeddings, norms, biases and heads."""
        blocks = {
            id(p)
            for part in (self.host.model.vision_tower.encoder, self.host.model.language_model.layers)
            for p in part.parameters()
            if p.ndim == 2
        }
        trained = [p for p in self.parameters() if p.requires_grad]
        matrices = [p for p in trained if id(p) in blocks]
        others = [p for p in trained if id(p) not in blocks]
        rate = self.hparams["learning_rate"]
        return [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, weight_decay=0.01, betas=(0.9, 0.98)),
        ]

    def _shape(self) -> dict[str, Any]:
        return (
            {"cells": 3, "things": (2, 6)}
            if self.hparams["stage"] in ("patches", "windows")
            else {"cells": 6, "things": (10, 18)}
        )

    def train_dataloader(self) -> DataLoader[PackedScenes]:
        """Training batches from where the run stands."""
        size, questions, seed = (self.hparams[name] for name in ("batch_size", "questions", "seed"))
        return DataLoader(
            _Scenes("train", seed, self.done, self.hparams["steps"], size, questions=questions, **self._shape()),
            batch_size=None,
        )

    def val_dataloader(self) -> DataLoader[PackedScenes]:
        """160 scenes of the calibration split with 12 questions each."""
        return DataLoader(_Scenes("calibration", 0, 0, 5, 32, questions=12, **self._shape()), batch_size=None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of batches seen."""
        checkpoint["done"] = self.done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the next batch."""
        self.done = checkpoint["done"]
