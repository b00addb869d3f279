"""The host that ships is stock, small and whole."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from crtc.evaluation import Evaluation
from crtc.hosts.dialogue import prompt_of
from crtc.hosts.embedded import EMBEDDED, _check_processor, image_tokens, load_host, make_processor
from crtc.hosts.stock import load_stock
from crtc.methods import KMeans
from crtc.tasks.picture import Glyphs

Host = tuple[Any, Any]


def test_is_a_stock_llava(host: Host) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(EMBEDDED)
    assert type(model) is LlavaForConditionalGeneration
    config = json.loads((EMBEDDED / "config.json").read_text())
    assert config["model_type"] == "llava" and "auto_map" not in config
    assert not list(EMBEDDED.rglob("*.py"))
    for name, value in host[0].state_dict().items():
        assert torch.equal(value, model.state_dict()[name].float()), name
        assert bool(torch.isfinite(value).all()), name


def test_fits_into_a_package() -> None:
    assert sum(file.stat().st_size for file in EMBEDDED.rglob("*") if file.is_file()) < 16 * 2**20


@torch.no_grad()
def test_576_tokens_per_image(host: Host) -> None:
    model, processor = host
    assert image_tokens(processor) == 576
    inputs = processor(images=Image.new("RGB", (300, 200)), text=prompt_of(processor, "why?"), return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 576
    rows = model.model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output
    assert [len(row) for row in rows] == [576]


def test_processor_files_are_those_of_the_code(host: Host) -> None:
    stored, made = AutoProcessor.from_pretrained(EMBEDDED), make_processor()
    assert isinstance(stored, LlavaProcessor)
    image = Image.effect_noise((250, 180), 60).convert("RGB")
    text = prompt_of(made, "what color is the cross?")
    assert prompt_of(stored, "what color is the cross?") == text
    one, other = (processor(images=image, text=text, return_tensors="pt") for processor in (stored, made))
    assert torch.equal(one["input_ids"], other["input_ids"])
    assert torch.equal(one["pixel_values"], other["pixel_values"])
    assert one["pixel_values"].shape == (1, 3, 192, 192)
    assert -1 <= float(one["pixel_values"].min()) < 0 < float(one["pixel_values"].max()) <= 1


def test_special_tokens_agree(host: Host) -> None:
    model, processor = host
    tokenizer, text = processor.tokenizer, model.config.text_config
    assert len(tokenizer) == text.vocab_size
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id == processor.image_token_id
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        text.pad_token_id,
        text.bos_token_id,
        text.eos_token_id,
    )
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_float_type_and_mode() -> None:
    model, _ = load_host("embedded", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training


def test_no_such_host(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"host '.*nowhere' cannot be loaded"):
        load_host(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_host(tmp_path)


def test_damaged_host(tmp_path: Path, small_host: Path) -> None:
    folder = shutil.copytree(small_host, tmp_path / "host")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_host(folder)


def test_lacking_weights(tmp_path: Path, small_host: Path) -> None:
    folder = shutil.copytree(small_host, tmp_path / "host")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "linear_1" in name)
    save_file({name: w for name, w in weights.items() if name != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is no whole LLaVA, it lacks"):
        load_host(folder)
    with pytest.raises(ValueError, match="is no whole checkpoint, it lacks"):
        load_stock(folder)


def test_no_processor(tmp_path: Path, small_host: Path) -> None:
    folder = shutil.copytree(small_host, tmp_path / "host")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_host(folder)


def test_another_model_is_no_llava(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no LLaVA, but llama"):  # and builds none of default size to find out
        load_host(tmp_path)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_no_such_device(small_host: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"'{device}'"):
        load_host(small_host, device=device)


def test_a_siglip_tower(tmp_path: Path) -> None:
    """It has no [CLS], and its processor crops nothing."""
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        vision_use_head=False,
    )
    tokenizer = make_processor().tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image, vision_feature_select_strategy="full"
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
    ).save_pretrained(tmp_path)
    small = load_host(tmp_path)
    assert image_tokens(small[1]) == 16
    results = Evaluation(small, Glyphs("test", 2, 2), {"kmeans": KMeans()}, counts=[16, 4]).run()
    assert results.runs["kmeans", True, 4].layer_equivalent == 4
    assert results.runs["kmeans", False, 16].agree.all()


def test_a_processor_of_another_kind_is_refused() -> None:
    """Such as Pixtral's, which makes as many tokens as a picture is large."""
    with pytest.raises(ValueError, match=r"its SimpleNamespace tells no num_additional_image_tokens, .*, size of"):
        _check_processor(SimpleNamespace(patch_size=16, image_processor=SimpleNamespace(size={})))
