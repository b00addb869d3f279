"""Any image-text model of transformers with its processor, ready to answer."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor

from crtc.dtypes import fast_dtype
from crtc.hosts.embedded import EMBEDDED, whole
from crtc.hosts.family import check_model


def load_stock(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
) -> tuple[Any, Any]:
    """A model and its processor, which pads on the left as `generate` wants it.

    Args:
        name: "embedded", a folder, or an id of the Hugging Face hub.
        dtype: of the weights; the one that is fast on the device, without.
        device: of the weights.
        attention: implementation of attention.

    Raises:
        ValueError: if it cannot be loaded whole, the device cannot be used, its visual tokens cannot be compressed, or
            it has no chat template.
    """
    path = EMBEDDED if name == "embedded" else name
    dtype = fast_dtype(device) if dtype is None else dtype
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, attn_implementation=attention, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"model {str(name)!r} cannot be loaded: {error}") from error
    model = whole(f"model {str(name)!r}", "checkpoint", loaded, device)
    check_model(model)
    if not getattr(processor, "chat_template", None):
        raise ValueError(f"model {str(name)!r} has no chat template, expected a model that answers dialogues")
    processor.tokenizer.padding_side = "left"
    return model, processor
