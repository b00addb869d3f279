"""The host that ships with the package: a stock LLaVA trained on glyph scenes."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from crtc.hosts.dialogue import tokens_of
from crtc.tasks.glyphs.tokenizer import PROMPT, make_tokenizer

EMBEDDED = Path(__file__).parent / "glyphs_llava"
SIZE, PATCH = 192, 8
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def make_processor() -> LlavaProcessor:
    """Pixels to [-1, 1] at 192 x 192, the glyph tokenizer, and the prompt of training as chat template."""
    images = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_convert_rgb=True,
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=images,
        tokenizer=make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )


def load_host(
    name: str | Path | None = None, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[LlavaForConditionalGeneration, Any]:
    """A LLaVA and its processor: the embedded one, a folder, or an id of the Hugging Face hub.

    Args:
        name: of the folder or on the hub; "embedded", or nothing, for the one that ships.
        dtype: of the weights.
        device: to put it on; "auto" is the GPU if there is one.

    Raises:
        ValueError: if there is no such model, or it is no LLaVA.
    """
    path = EMBEDDED if name is None or name == "embedded" else name
    try:
        config = AutoConfig.from_pretrained(path)
        if not isinstance(config, LlavaConfig):  # else a LLaVA of default size would be built, billions of weights
            raise ValueError(f"it is no LLaVA, but {config.model_type}")
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(path, dtype=dtype, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
        _check_processor(processor)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"host {str(path)!r} cannot be loaded: {error}") from error
    return whole(f"host {str(path)!r}", "LLaVA", loaded, device), processor


def _check_processor(processor: Any) -> None:
    """Raise `ValueError` unless it makes as many tokens of every image, as those of CLIP and SigLIP towers do."""
    told = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")
    missing = [name for name in told if getattr(processor, name, None) is None]
    missing += [] if _side(processor, "height") and _side(processor, "width") else ["size of its images"]
    if missing:
        raise ValueError(
            f"its {type(processor).__name__} tells no {', '.join(missing)}, expected that of a CLIP or SigLIP tower"
        )


def _side(processor: Any, name: str) -> int | None:
    """Pixels that every image has when it is processed: CLIP crops to them, SigLIP stretches."""
    images = getattr(processor, "image_processor", None)
    return dict(getattr(images, "crop_size", None) or getattr(images, "size", None) or {}).get(name)


def whole(name: str, kind: str, loaded: tuple[Any, dict[str, Any]], device: str | torch.device) -> Any:
    """A model ready to answer, from what `from_pretrained` gives with `output_loading_info`.

    Raises:
        ValueError: if weights were missing, so that they would be random, or the device cannot be used.
    """
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"{name} is no whole {kind}, it lacks {sorted(report['missing_keys'])[:3]}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error


assert PROMPT.startswith("USER: <image>\n")  # the template above must say the same


def image_tokens(processor: Any) -> int:
    """Visual tokens of an image, as a processor of fixed size makes them."""
    height, width = _side(processor, "height"), _side(processor, "width")
    assert height is not None and width is not None  # `load_host` takes no other
    return tokens_of(processor, height, width)
