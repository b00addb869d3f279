"""Tokens leave a stock classifier between two layers, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from crtc.hosts.attention import attended, attention_layers, biased
from crtc.hosts.classifier import Classifier, load_classifier
from crtc.merging import make_plan, mean
from crtc.methods import KMeans
from crtc.tokens import DROPPED, Groups, keep_all
from tests.classifiers import FAMILIES, make_model, make_photographs

ATTENTION = ("sdpa", "eager")


def pixels(number: int = 3) -> Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def clean(model: Any) -> bool:
    hooks = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    return not hooks and "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_all_tokens_give_what_the_stock_model_gives(name: str, attention: str) -> None:
    model = make_model(name, attention)
    classifier = Classifier(model, None, "")
    assert (classifier.depth, classifier.num_patches, classifier.leading) == (4, 16, FAMILIES[name][1])
    expected = model(pixels()).logits
    logits, between = classifier.read(pixels(), range(1, 4), classifier.signals)
    assert torch.equal(logits, expected)
    for layer, states in between.items():
        for mass in (False, True):
            found = classifier.shortened(layer, states, keep_all(states.tokens), mass=mass)
            torch.testing.assert_close(found, expected)
    assert clean(model)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_merge_of_equal_tokens_with_mass_changes_nothing(name: str, attention: str) -> None:
    """The last rows of patches repeat the first ones in front of a layer: merged with mass, they do the same."""
    classifier = Classifier(make_model(name, attention), None, "")
    _, between = classifier.read(pixels(), [2])
    states = between[2]
    x = states.tokens.x.view(3, 16, -1)
    x[:, 10:] = x[:, :6]
    groups = Groups.of(states.tokens)
    owner = torch.arange(16).where(torch.arange(16) < 10, torch.arange(16) - 10).expand(3, 16)
    plan = make_plan(states.tokens, groups, owner, mean(owner, groups.valid))
    expected = classifier.finish(2, states.leading, x)
    found = classifier.shortened(2, states, plan, mass=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert float((classifier.shortened(2, states, plan, mass=False) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2ForImageClassification"])
def test_images_may_lose_different_numbers_of_tokens(name: str) -> None:
    """A method may leave tokens out of all slots; every image is read as if it were alone."""
    classifier = Classifier(make_model(name), None, "")
    _, between = classifier.read(pixels(), [2])
    tokens = between[2].tokens
    groups = Groups.of(tokens)
    owner = (torch.arange(16) % 5).expand(3, 16).clone()
    owner[1, 14:] = DROPPED
    plan = make_plan(tokens, groups, owner, mean(owner, groups.valid))
    together = classifier.shortened(2, between[2], plan, mass=True)
    for image in range(3):
        _, alone = classifier.read(pixels()[image : image + 1], [2])
        part = Groups.of(alone[2].tokens)
        own = make_plan(alone[2].tokens, part, owner[image : image + 1], mean(owner[image : image + 1], part.valid))
        found = classifier.shortened(2, alone[2], own, mass=True)
        torch.testing.assert_close(found[0], together[image], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_signals_are_those_of_the_layer_before() -> None:
    model = make_model(attention="eager")
    classifier = Classifier(model, None, "")
    _, between = classifier.read(pixels(), [1, 3], classifier.signals)
    stock = model(pixels(), output_attentions=True, output_hidden_states=True)
    for layer in (1, 3):
        tokens = between[layer].tokens
        weights = stock.attentions[layer - 1].mean(1)
        torch.testing.assert_close(tokens.x, stock.hidden_states[layer][:, 1:].flatten(0, 1))
        torch.testing.assert_close(tokens.signals.cls_attention, weights[:, 0, 1:].flatten())
        torch.testing.assert_close(tokens.signals.received_attention, weights.mean(1)[:, 1:].flatten())
        assert tokens.signals.features is tokens.x and tokens.signals.keys.shape == (48, 12)
        assert tokens.grid[:16].tolist() == [[0, row, column] for row in range(4) for column in range(4)]
        assert tokens.group_sizes.tolist() == [16, 16, 16]
    assert not classifier.read(pixels(), [1])[1][1].tokens.signals.present
    assert "cls_attention" not in Classifier(make_model("SiglipForImageClassification"), None, "").signals


def test_nothing_stays_behind_after_an_error() -> None:
    model = make_model()
    classifier = Classifier(model, None, "")
    _, between = classifier.read(pixels(), [2])
    states = between[2]
    with pytest.raises(RuntimeError):  # one size too few
        classifier.finish(2, states.leading, states.tokens.x.view(3, 16, -1), torch.ones(3, 15) * 2)
    assert clean(model)
    with pytest.raises(ValueError, match="Input image size"):
        classifier.read(torch.zeros(1, 3, 40, 40), [1, 2], classifier.signals)
    assert clean(model)


@torch.no_grad()
def test_bias_and_notes_at_the_same_time() -> None:
    """Whoever watches sees the stock call, while the bias takes keys out of the sum."""
    model = make_model()
    attention = attention_layers(model)[0][1]
    states = torch.randn(2, 5, 24)
    bias = torch.zeros(2, 5)
    bias[:, 3:] = -torch.inf
    calls: list[Any] = []
    with biased([attention], bias), attended(attention, calls):
        found = attention(states)[0]
        masked = attention(states, attention_mask=torch.zeros(2, 1, 5, 5))[0]
    torch.testing.assert_close(found[:, :3], attention(states[:, :3])[0])
    torch.testing.assert_close(found, masked)
    assert len(calls) == 2 and calls[0].visible is None and clean(model)


def test_uneven_plans_and_layers_that_are_not_there() -> None:
    classifier = Classifier(make_model(), None, "")
    _, between = classifier.read(pixels(), [2])
    plan = KMeans()(between[2].tokens, torch.tensor([4, 4, 5]))
    with pytest.raises(ValueError, match=r"keeps \[4, 4, 5\] tokens, expected as many of every image"):
        classifier.shortened(2, between[2], plan, mass=True)
    for layer in (0, 4):
        with pytest.raises(ValueError, match=f"layer is {layer}, expected 1 to 3"):
            classifier.read(pixels(), [layer])


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("BeitForImageClassification", {"use_relative_position_bias": True}, "tokens cannot leave between layers"),
        ("Data2VecVisionForImageClassification", {}, "expected a stack of plain attention layers"),
    ],
)
def test_models_whose_tokens_cannot_leave(name: str, changes: dict[str, Any], reason: str) -> None:
    model = make_model(name, **changes)
    with pytest.raises(ValueError, match=f"{name} is not supported.*{reason}"):
        Classifier(model, None, "")
    assert clean(model)


def test_layers_that_know_places_are_refused() -> None:
    """Nothing tells it but the behaviour: here the last layer counts its tokens."""
    model = make_model()
    hook = attention_layers(model)[-1][0].register_forward_hook(
        lambda module, args, output: output * (output.shape[1] * torch.arange(24)).sin()
    )
    with pytest.raises(ValueError, match="two tokens alike do not do what one of size 2 does"):
        Classifier(model, None, "")
    hook.remove()


def test_attention_without_a_bias_is_refused() -> None:
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2', expected one of sdpa, eager"):
        Classifier(model, None, "")


def test_loading_without_a_processor(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    classifier = load_classifier(tmp_path, attention="eager")
    assert classifier.preprocessing == "none given by the model: resized to 32 x 32 (bicubic), mean = std = 0.5"
    assert classifier.model.dtype == torch.float32 and classifier.model.config._attn_implementation == "eager"
    found = classifier.pixels(make_photographs(2))
    assert found.shape == (2, 3, 32, 32) and -1 <= float(found.min()) < -0.3 and 0.3 < float(found.max()) <= 1
    assert classifier.label2id["dog"] == 3 and classifier.num_classes == 5


def test_loading_with_a_processor(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    processor.save_pretrained(tmp_path)
    classifier = load_classifier(tmp_path)
    assert classifier.preprocessing == "ViTImageProcessorPil of the model"
    images = make_photographs(2)
    assert torch.equal(classifier.pixels(images), processor(images, return_tensors="pt")["pixel_values"])
    ViTImageProcessorPil(size={"height": 40, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"makes pixels of \(3, 40, 32\), expected \(3, 32, 32\)"):
        load_classifier(tmp_path).pixels(images)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded as an image classifier"):
        load_classifier(tmp_path)
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "classifier" not in key}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is no whole image classifier, it lacks \['classifier"):
        load_classifier(tmp_path)
