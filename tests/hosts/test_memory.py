"""What capturing signals costs in memory, with 2,880 visual tokens, by the counts of the allocator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import crtc
from crtc.hosts.signals import capture

IMAGES, SIDE, PATCH, WIDTH = 5, 24, 4, 64
IMAGE = 5
"""Id of the placeholder."""


def peak(run: Callable[[], Any]) -> int:
    """Bytes that a call holds at the most, beside what was there before."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(changes.cumsum(0).max())


@pytest.fixture(scope="module")
def host() -> LlavaForConditionalGeneration:
    """In the proportions of LLaVA-1.5: the projector and the language model four times as wide as the tower."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=4 * WIDTH,
        intermediate_size=11 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=64,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    """Five images of 576 tokens in one prompt."""
    ids = torch.tensor([[1, *[IMAGE] * (IMAGES * SIDE**2), 2, 3]])
    pixels = torch.randn(IMAGES, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def test_a_forward_that_captures_cls_attention(host: LlavaForConditionalGeneration, inputs: dict[str, Tensor]) -> None:
    def forward(method: str) -> None:
        with crtc.compressed(host, method, keep=0.999):
            host(**inputs)

    assert peak(lambda: forward("cls_attention")) < 1.02 * peak(lambda: forward("random"))


def test_the_tower_alone(host: LlavaForConditionalGeneration, inputs: dict[str, Tensor]) -> None:
    pixels = inputs["pixel_values"]
    plain = peak(lambda: host.model.get_image_features(pixel_values=pixels, return_dict=True))
    attention = peak(lambda: capture(host, "image", {"pixel_values": pixels}, ["cls_attention"]))
    assert attention < 1.02 * plain


def test_parameters_are_as_they_were(host: LlavaForConditionalGeneration, inputs: dict[str, Tensor]) -> None:
    before = {name: parameter.requires_grad for name, parameter in host.named_parameters()}
    assert all(before.values())
    with torch.no_grad():
        output, found = capture(host, "image", {"pixel_values": inputs["pixel_values"]}, ["cls_attention"])
        assert not torch.is_grad_enabled()
    assert before == {name: parameter.requires_grad for name, parameter in host.named_parameters()}
    assert found["cls_attention"].shape == (IMAGES * SIDE**2,)
    assert not any(part.requires_grad for part in output.pooler_output)
