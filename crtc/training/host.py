"""Train the embedded host: a stock LLaVA that answers questions about glyph scenes.

Cheap on two CPU cores by four means. Many questions share one image in one sequence (block mask). The first stages see
small scenes, windows of the final position grid, at a fifth of the cost. Dense per-patch labels supervise the projected
visual tokens beside the answers, and the [CLS] state learns which colour-kind pairs and which bystanders the scene
holds, so that [CLS] attention means something. And states inside the language model learn which thing a word names, how
two things lie, and where the answer is: the steps of looking up, which answers alone teach very slowly.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.modeling_clip import CLIPAttention

from crtc.hosts import CACHE
from crtc.tasks.glyphs.questions import FAMILIES
from crtc.tasks.glyphs.scene import BYSTANDER_COLORS, BYSTANDERS, COLORS, PATCH, SHADES, SHAPES
from crtc.tasks.glyphs.tokenizer import PROMPT
from crtc.training.packing import GRID, IGNORE, PackedScenes, Scenes, glyph_tokenizer
from crtc.training.resuming import check_same

KINDS = 1 + len(SHAPES) + 10 + len(BYSTANDERS)
HEADS = {
    "kind": KINDS,
    "color": 1 + len(COLORS) + len(BYSTANDER_COLORS),
    "place": 4,
    "middle": 2,
    "size": 7,
    "shade": SHADES,
    "row": GRID,
    "column": GRID,
}
"""Classes of every dense label."""
DENSE = {"kind": 1.0, "color": 1.0, "place": 1.0, "middle": 1.0, "size": 1.0, "shade": 0.1, "row": 0.1, "column": 0.1}
"""Weight of every dense loss. Positions come easily and would own most of the tokens' variance if they weighed more.
Shades keep background from becoming one and the same token, as no tower does that was trained on photographs.
"""
DIGITS = 3.0
"""Weight of digit patches in the loss of `kind`: ten classes of few pixels, the last thing that the tower learns."""
LOOK = {"row": GRID + 1, "column": GRID + 1, "size": HEADS["size"]}
POINTERS = {"mention": (2, LOOK), "order": (3, {"x": 2, "y": 2, "size": 2}), "target": (4, LOOK)}
"""What the language model must know of a question after which layer, and the classes: first which thing a word names,
then which of two lies further right, lies further down and is bigger, then which thing tells the answer. Learned from
the answers alone, looking up and comparing took many thousands of steps more.
"""
STAGES = ("patches", "windows", "whole-patches", "full")


def make_host(
    *, hidden: int = 192, vision_layers: int = 5, text_layers: int = 5, head: int = 32
) -> LlavaForConditionalGeneration:
    """An untrained stock LLaVA: CLIP tower with [CLS] on 576 patches, Llama decoder, glyph vocabulary."""
    tokenizer = glyph_tokenizer()
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


class HostTraining(lightning.LightningModule):
    """Answers by next-token prediction, patches by dense labels, [CLS] by what the scene holds.

    Args:
        stage: `"patches"` trains the tower alone on 96 x 96 scenes placed anywhere in the position grid, `"windows"`
            the whole model on the same; `"whole-patches"` and `"full"` do so on 192 x 192.
        freeze_tower: whether the vision tower stays as it is.
        steps: optimiser steps of this stage; the learning rate falls linearly to zero at its end.
        batch_size: scenes per step.
        questions: questions per scene.
        learning_rate: of Muon (hidden matrices) and AdamW (all other parameters).
        dense_weight: weight of the per-patch losses.
        pointer_weight: weight of the losses that tell the language model which thing to look at.
        bystanders: whether scenes hold things that nobody asks about.
        start_from: weights of an earlier stage to begin with, or the folder of a host, whose heads begin anew.
        seed: of scenes, questions and initial weights.

    Raises:
        ValueError: if the stage or a number is impossible, or `start_from` holds no weights of this model.
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
        pointer_weight: float = 0.2,
        bystanders: bool = True,
        start_from: str | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.kinds: Tensor
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}, expected one of {STAGES}")
        if min(steps, batch_size, questions) < 1:
            raise ValueError(
                f"steps is {steps}, batch_size {batch_size} and questions {questions}, expected at least 1 each"
            )
        self.save_hyperparameters()
        self.automatic_optimization = False
        torch.manual_seed(seed)
        self.host = make_host()
        width = self.host.lm_head.in_features
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in HEADS.items()})
        self.pointers = nn.ModuleDict(
            {
                f"{name}_{what}": nn.Linear(width, size)
                for name, (_, wanted) in POINTERS.items()
                for what, size in wanted.items()
            }
        )
        self.presence = nn.Linear(width, len(COLORS) * (len(SHAPES) + 1) + len(BYSTANDERS))
        weights = [1.0] * (1 + len(SHAPES)) + [DIGITS] * 10 + [1.0] * len(BYSTANDERS)
        self.register_buffer("kinds", torch.tensor(weights), persistent=False)
        self.done = 0  # batches seen, so that a resumed run goes on with the next one
        if start_from is not None:
            try:
                self._begin_with(Path(start_from))
            except (OSError, KeyError, TypeError, RuntimeError, UnpicklingError) as error:
                raise ValueError(f"start_from {start_from!r} holds no weights of this model: {error}") from error
        self.host.model.vision_tower.requires_grad_(not freeze_tower)

    def _begin_with(self, start: Path) -> None:
        if start.is_dir():
            begun = LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
            self.host.load_state_dict(begun.state_dict())
        else:
            self.load_state_dict(torch.load(start, weights_only=True, map_location="cpu")["state_dict"])

    def see(self, batch: PackedScenes) -> tuple[Tensor, Tensor]:
        """Projected visual tokens and the [CLS] state."""
        model = self.host.model
        tower = model.vision_tower
        table = tower.embeddings.position_embedding.weight
        patches = tower.embeddings.patch_embedding(batch.pixels).flatten(2).transpose(1, 2) + table[batch.patch + 1]
        summary = (tower.embeddings.class_embedding + table[0]).expand(len(batch), 1, -1)
        states = tower.encoder(inputs_embeds=tower.pre_layrnorm(torch.cat([summary, patches], 1))).last_hidden_state
        return model.multi_modal_projector(states[:, 1:]), tower.post_layernorm(states[:, 0])

    def answer(self, batch: PackedScenes, visual: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits and the states after each layer, at every text position.

        The picture is read first, causally, and its keys and values are cached; so no text row costs a mask over it.
        """
        model = self.host.model
        prefix = self._prefix.to(batch.ids.device).expand(len(batch), -1)
        embed = model.get_input_embeddings()
        start = torch.arange(prefix.shape[1], device=prefix.device).expand_as(prefix)
        begun = model.language_model(
            inputs_embeds=torch.cat([embed(prefix), visual], 1),
            attention_mask=prefix.new_ones(len(batch), prefix.shape[1] + visual.shape[1]),
            position_ids=torch.cat([start, prefix.shape[1] + batch.patch], 1),
            use_cache=True,
        )
        length = batch.ids.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=batch.ids.device).tril()
        visible = visible & (batch.segment[:, None, :] == batch.segment[:, :, None])
        visible = F.pad(visible, (prefix.shape[1] + visual.shape[1], 0), value=True)
        hidden = model.language_model(
            inputs_embeds=embed(batch.ids),
            attention_mask=torch.zeros_like(visible, dtype=visual.dtype).masked_fill(~visible, -1e4)[:, None],
            position_ids=prefix.shape[1] + GRID * GRID + batch.position,
            use_cache=True,
            output_hidden_states=True,
            **{CACHE: begun.past_key_values},
        )
        return self.host.lm_head(hidden.last_hidden_state), tuple(hidden.hidden_states)

    @property
    def _prefix(self) -> Tensor:
        tokenizer = glyph_tokenizer()
        ids = tokenizer(PROMPT).input_ids
        return torch.tensor([ids[: ids.index(tokenizer.convert_tokens_to_ids("<image>"))]])

    def _losses(self, batch: PackedScenes) -> tuple[dict[str, Tensor], Tensor | None]:
        visual, summary = self.see(batch)
        losses = {
            name: F.cross_entropy(
                head(visual).flatten(0, 1).float(),
                batch.labels[name].flatten(),
                weight=self.kinds if name == "kind" else None,
                ignore_index=IGNORE,
            )
            for name, head in self.heads.items()
        }
        losses["presence"] = F.binary_cross_entropy_with_logits(self.presence(summary).float(), batch.presence)
        if self.hparams["stage"].endswith("patches"):
            return losses, None
        logits, states = self.answer(batch, visual)
        for name, (layer, wanted) in POINTERS.items():
            for index, what in enumerate(wanted):
                labels = getattr(batch, name)[..., index]
                chosen = labels != IGNORE
                known = F.rms_norm(states[layer][chosen], states[layer].shape[-1:])
                told = self.pointers[f"{name}_{what}"](known).float()
                losses[f"{name}_{what}"] = F.cross_entropy(told, labels[chosen], reduction="sum") / max(len(told), 1)
        losses["answer"] = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORE)
        return losses, logits

    def training_step(self, batch: PackedScenes, batch_idx: int) -> None:
        """One step of both optimisers."""
        left = max(0.0, 1 - self.done / self.hparams["steps"])
        scale = min(1.0, (self.done + 1) / 50, left / 0.7)
        losses, _ = self._losses(batch)
        dense = torch.stack([weight * losses[name] for name, weight in DENSE.items()]).sum()
        pointers = sum(losses.get(name, 0) for name in self.pointers)
        loss = (
            losses.get("answer", 0)
            + self.hparams["pointer_weight"] * pointers
            + losses["presence"]
            + self.hparams["dense_weight"] * dense
        )
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
        for index, name in enumerate(FAMILIES):
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
        small = self.hparams["stage"] in ("patches", "windows")
        shape = {"cells": 3, "things": (4, 8)} if small else {"cells": 6, "things": (6, 16)}
        # Less of everything than where the host is asked, which costs it little there (model card).
        shape |= {"numbers": 0.3, "lengths": (0.45, 0.35, 0.2), "crowds": (0.5, 0.5, 0.0)}
        return {**shape, "bystanders": (0.4, 1.0) if self.hparams["bystanders"] else (0.0, 0.0)}

    def train_dataloader(self) -> DataLoader[PackedScenes]:
        """Training batches from where the run stands."""
        size, questions, seed = (self.hparams[name] for name in ("batch_size", "questions", "seed"))
        return DataLoader(
            Scenes("train", seed, self.done, self.hparams["steps"], size, questions=questions, **self._shape()),
            batch_size=None,
        )

    def val_dataloader(self) -> DataLoader[PackedScenes]:
        """160 scenes of the calibration split with 12 questions each."""
        return DataLoader(Scenes("calibration", 0, 0, 5, 32, questions=12, **self._shape()), batch_size=None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of batches seen."""
        checkpoint["done"] = self.done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the next batch of the same run.

        Raises:
            ValueError: if the checkpoint is of other settings.
        """
        check_same(checkpoint, self)
        self.done = checkpoint["done"]
