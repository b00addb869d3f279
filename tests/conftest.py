"""Tiny hosts made in code, and the embedded one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from crtc.hosts.embedded import load_host, make_processor
from crtc.training.host import make_host

IMAGE_ID, PAD_ID = 90, 0


@pytest.fixture(scope="session")
def make_llava() -> Callable[..., LlavaForConditionalGeneration]:
    """Maker of a random LLaVA with 9 visual tokens per image, wide enough weights that argmax depends on the prompt."""

    def make(
        *,
        layers: int = 2,
        attention: str = "sdpa",
        tower: str = "clip",
        strategy: str = "default",
        feature_layer: int = -2,
        dtype: torch.dtype = torch.float32,
    ) -> LlavaForConditionalGeneration:
        torch.manual_seed(0)
        size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
        image = {"image_size": 12, "patch_size": 4}
        vision = CLIPVisionConfig(**size, **image) if tower == "clip" else SiglipVisionConfig(**size, **image)
        text = LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            pad_token_id=PAD_ID,
            bos_token_id=1,
            eos_token_id=2,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE_ID,
            vision_feature_layer=feature_layer,
            vision_feature_select_strategy=strategy,
        )
        model = LlavaForConditionalGeneration(config).eval().to(dtype)
        model.set_attn_implementation(attention)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.2)
        model.generation_config.pad_token_id = PAD_ID
        model.generation_config.eos_token_id = None
        return model

    return make


@pytest.fixture(scope="session")
def make_prompts() -> Callable[..., dict[str, Any]]:
    """Maker of a batch: row r holds `images[r]` images among random text, padded on `side`."""

    def make(
        images: tuple[int, ...] = (1, 2),
        *,
        extra: tuple[int, ...] = (6, 3),
        side: str = "left",
        rows: int = 9,
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)

        def words(number: int) -> list[int]:
            return torch.randint(3, 80, (number,), generator=generator).tolist()

        texts = []
        for number, tail in zip(images, extra, strict=False):
            text = [1, *words(2)]
            for _ in range(number):
                text += [IMAGE_ID] * rows + words(2)
            texts.append(text + words(tail))
        length = max(map(len, texts))
        pads = [[PAD_ID] * (length - len(text)) for text in texts]
        join = (lambda pad, text: pad + text) if side == "left" else (lambda pad, text: text + pad)
        return {
            "input_ids": torch.tensor([join(pad, text) for pad, text in zip(pads, texts, strict=True)]),
            "attention_mask": torch.tensor(
                [join([0] * len(pad), [1] * len(text)) for pad, text in zip(pads, texts, strict=True)]
            ),
            "pixel_values": torch.randn(sum(images), 3, 12, 12, generator=generator).to(dtype),
        }

    return make


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs stay on this machine, whoever is logged in."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture(scope="session")
def host() -> tuple[LlavaForConditionalGeneration, Any]:
    """The embedded host in float32 and its processor; tests leave it as it is."""
    return load_host()


@pytest.fixture(scope="session")
def small_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained host of one narrow layer, for what needs many steps and no right answers."""
    folder = tmp_path_factory.mktemp("small_host")
    torch.manual_seed(0)
    make_host(hidden=32, vision_layers=1, text_layers=1).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder
