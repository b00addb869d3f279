"""What a stock vision-language model is to us, and what tells one family from another.

Lines that exist for particular families, here and elsewhere, end in `# family: ...`; a test counts them.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

Modality = Literal["image", "video"]
MODALITIES: tuple[Modality, ...] = ("image", "video")
FAMILY_MARK = "# family:"
CACHES = ("cache", "past_key_values")
"""What models call their cache, from transformers 5.24 on and before."""
CACHE = next(name for name in CACHES if name in inspect.signature(create_masks_for_generate).parameters)


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a model or a layer, None if there is none."""
    return next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)


def modalities(model: Any) -> tuple[Modality, ...]:
    """What a model can be shown: it has a feature function for it, and an id of its placeholder."""
    base = model.base_model
    return tuple(
        name
        for name in MODALITIES
        if hasattr(base, f"get_{name}_features") and getattr(model.config, f"{name}_token_id", None) is not None
    )


def check_model(model: object) -> Any:
    """`model` itself, if its visual tokens are rows that take the place of placeholders in the prompt.

    Raises:
        ValueError: if it is another kind of model, with the reason.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"{name} is not supported, expected a vision-language model of transformers")
    if model.is_remote_code():
        raise ValueError(f"{name} is not supported: its code is not that of transformers")
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is not supported: an encoder reads its prompts, and a decoder the encoder's states")
    if hasattr(model.base_model, "get_image_tokens"):  # family: Emu3, Chameleon
        raise ValueError(f"{name} is not supported: its images become discrete tokens of the vocabulary, not features")
    if not modalities(model):
        crosses = any("cross" in part.lower() and "attn" in part.lower() for part, _ in model.named_modules())
        reason = (
            "it reads images by cross-attention, its prompts hold no visual tokens"
            if crosses
            else ("it has no placeholders that visual features replace")
        )
        raise ValueError(f"{name} is not supported: {reason}")
    takers = (model, model.base_model)  # some models hand on what they do not name
    if not any("mm_encoder_outputs" in inspect.signature(one.forward).parameters for one in takers):
        raise ValueError(f"{name} is not supported: it does not take encoded images (mm_encoder_outputs)")
    return model


def takes_masks_by_kind(model: Any) -> bool:
    """Whether the model can be given a mask for each kind of layer."""
    return bool(model.config.model_type != "paligemma")  # family: PaliGemma


def turns_in_space(model: Any) -> bool:
    """Whether positions are those of time, row and column (M-RoPE)."""
    return hasattr(model.base_model, "get_rope_index")


def first_position(model: Any) -> int:
    """Position of the first token in a plain call."""
    return int(model.config.model_type == "paligemma")  # family: PaliGemma


def has_places(model: Any) -> bool:
    """Whether visual rows are places of the picture: not with the newline rows or latents of some families."""
    if hasattr(model.base_model, "image_newline"):  # family: LLaVA-NeXT, LLaVA-OneVision, Granite4-Vision
        return False
    return not hasattr(model.config, "perceiver_config")  # family: Idefics2


def rows_field(output: Any) -> str | None:
    """The field of a feature function's output that holds the rows, None if only deepstack layers have them."""
    if getattr(output, "pooler_output", None) is not None:
        return "pooler_output"
    if getattr(output, "deepstack_features", None) is not None:  # family: Granite4-Vision
        return None
    return "last_hidden_state"  # family: Llama 4, Fuyu


def projected(model: Any, rows: Tensor, field: str | None) -> Tensor:
    """Rows as the language model reads them."""
    if field == "last_hidden_state" and hasattr(model.base_model, "multi_modal_projector"):  # family: Llama 4
        return model.base_model.multi_modal_projector(rows)  # type: ignore[no-any-return] # family: Llama 4
    return rows


def tower(model: Any, modality: Modality) -> nn.Module | None:
    """The vision tower, None where the model does not tell it."""
    own = getattr(model.base_model, f"{modality}_tower", None)  # family: Video-LLaVA
    found = own or model.get_encoder(modality=modality)
    return found if isinstance(found, nn.Module) and found is not model and found is not model.base_model else None


def feature_layer(model: Any, chosen: int | list[int] | None) -> int | list[int]:
    """The hidden state of the tower that the projector reads, 0 is the embeddings."""
    if chosen is not None:
        return chosen
    names = ("vision_feature_layer", "vision_feature_layers")  # family: VipLLaVA
    configured = (getattr(model.config, name, None) for name in names)
    return next((layer for layer in configured if layer is not None), -1)


def padding_id(model: Any) -> int:
    """What stands in a column of padding."""
    text = model.config.get_text_config()
    known = (getattr(text, "pad_token_id", None), model.generation_config.pad_token_id)
    return int(next((number for number in known if number is not None), 0))


def preserved(model: Any) -> dict[str, Any]:
    """State that stock position counting leaves on a model, to be put back."""
    return {name: getattr(model.base_model, name) for name in ("rope_deltas",) if hasattr(model.base_model, name)}


def own_positions(model: Any, inputs: dict[str, Any], mask: Tensor) -> Tensor:
    """Positions as `generate` counts them: [B, L], or [4, B, L] with a row for text before time, row and column."""
    before = preserved(model)
    try:
        found = model._prepare_position_ids_for_generation(inputs["input_ids"], {**inputs, "attention_mask": mask})
    finally:
        for name, value in before.items():
            setattr(model.base_model, name, value)
    return torch.as_tensor(found)
