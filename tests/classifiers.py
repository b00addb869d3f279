"""Tiny image classifiers and photographs for tests, made in code."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

NAMES = ("ant", "bee", "cat", "dog", "elk")
FAMILIES: dict[str, tuple[str, int]] = {
    "ViTForImageClassification": ("ViTConfig", 1),
    "DeiTForImageClassification": ("DeiTConfig", 2),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", 2),
    "ViTMSNForImageClassification": ("ViTMSNConfig", 1),
    "Dinov2ForImageClassification": ("Dinov2Config", 1),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", 5),
    "IJepaForImageClassification": ("IJepaConfig", 0),
    "SiglipForImageClassification": ("SiglipConfig", 0),
    "CLIPForImageClassification": ("CLIPConfig", 1),
}
"""Configuration and number of leading tokens of every class of models."""


def make_model(name: str = "ViTForImageClassification", attention: str = "sdpa", **changes: Any) -> Any:
    """A random classifier of 4 layers and 4 x 4 patches, with wide enough weights that every token counts."""
    torch.manual_seed(0)
    size = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    size |= {"image_size": 32, "patch_size": 8}
    kind = getattr(transformers, FAMILIES[name][0] if name in FAMILIES else name.partition("For")[0] + "Config")
    nested = name.startswith(("Siglip", "CLIP"))
    config = kind(**({"vision_config": size} if nested else size), **changes)
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {label: number for number, label in enumerate(NAMES)}
    config.architectures = [name]
    model = getattr(transformers, name)._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model


def make_photographs(number: int, seed: int = 0) -> list[Image.Image]:
    """Images of noise in several sizes."""
    random = np.random.default_rng(seed)
    sides = random.integers(24, 60, (number, 2))
    return [Image.fromarray(random.integers(0, 256, (high, wide, 3), dtype=np.uint8)) for high, wide in sides]


def write_folder(folder: Path, names: tuple[str, ...] = NAMES, each: int = 2) -> Path:
    """A folder with one folder of images per class."""
    images = iter(make_photographs(len(names) * each))
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            next(images).save(folder / name / f"{number}.png")
    return folder
