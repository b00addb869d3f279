"""The LLaVA of vLLM, its images compressed between projector and language model; imported by vLLM alone."""

import re
from functools import cached_property
from typing import Any

from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from crtc.plugins.serving import Serving, watched
from crtc.tokens import Signals


class ShortLlavaProcessingInfo(LlavaProcessingInfo):  # type: ignore[misc]  # vLLM is not there to be checked
    """What vLLM asks before it encodes: how many tokens an image gets."""

    @cached_property
    def serving(self) -> Serving:
        """How images are compressed.

        Raises:
            ValueError: if the configuration does not say so, or the vision tower is Pixtral's.
        """
        config = self.get_hf_config()
        if config.vision_config.model_type == "pixtral":
            raise ValueError(
                "the vision tower is Pixtral's, which puts words between the rows; expected CLIP or SigLIP"
            )
        return Serving.of(config)

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        """Tokens that stay.

        Raises:
            ValueError: if more than the image has are to stay.
        """
        full = super().get_num_image_tokens(image_width=image_width, image_height=image_height)
        return self.serving.num_kept(full)


@MULTIMODAL_REGISTRY.register_processor(
    LlavaMultiModalProcessor, info=ShortLlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class CrtcLlavaForConditionalGeneration(LlavaForConditionalGeneration):  # type: ignore[misc]
    """LLaVA whose language model reads the kept tokens only."""

    # Checkpoints of transformers 5 have the layers of the tower in the tower itself.
    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_regex={
            re.compile(r"\bvision_tower\.(?=embeddings|encoder|pre_|post_)"): "vision_tower.vision_model."
        }
    )

    @cached_property
    def serving(self) -> Serving:
        """How images are compressed; made when the first one is encoded, in float32 and apart from the weights."""
        return Serving.of(self.config)

    def embed_multimodal(self, **kwargs: object) -> Any:
        """Encode and compress images; rows that were encoded elsewhere pass as they are."""
        if kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)
        if not self.serving.signals:
            return self.serving.shortened(super().embed_multimodal(**kwargs), Signals())
        vision = self.config.vision_config
        heads, depth = vision.num_attention_heads, vision.num_hidden_layers
        with watched(self.vision_tower, self.multi_modal_projector, heads=heads, depth=depth) as seen:
            rows = super().embed_multimodal(**kwargs)
        return self.serving.shortened(rows, seen.signals())
