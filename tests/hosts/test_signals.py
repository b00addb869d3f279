"""What towers tell: attention equal to what eager layers put out, on the visual token that each patch is part of."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import get_vision_window_index

from crtc import compress
from crtc.hosts import attention as attentions
from crtc.hosts import encode
from crtc.hosts.attention import attended, attention_layers
from crtc.hosts.family import tower
from crtc.hosts.patches import reached, shapes_only
from crtc.methods.method import ScoreMethod
from crtc.tokens import SIGNALS
from tests.hosts.families import BUILDERS, GRIDS, build
from tests.hosts.watching import softmax_shapes

EVERY = ((0, 1, 2),)
BLIND = {"idefics2", "got_ocr2", "granite4_vision", "fuyu"}
"""Their projectors mix patches: latents, convolutions, a window of queries; or there is no tower."""
UNTOLD = {"gemma3_narrow", "gemma4", "glm46v", "llava_next_video", "llava_onevision", "llava_onevision_video"}
UNTOLD |= {"qwen2_5_vl_video", "qwen3_5", "qwen3_omni", "qwen3_vl_mixed", "qwen3_vl_moe", "video_llava"}
"""Told of no geometry below: those like another family, clips, and pooling by position."""
WITH_CLS = {"llava", "llava_next", "llava_next_video", "vipllava", "video_llava", "internvl", "llama4"}


class Saliency(ScoreMethod):
    """The [CLS] attention."""

    family = "saliency"
    needs = frozenset({"cls_attention"})

    def score(self, tokens):
        """Attention."""
        return tokens.signals.cls_attention


class Norms(ScoreMethod):
    """The norm of encoder states."""

    family = "saliency"
    needs = frozenset({"features"})

    def score(self, tokens):
        """Norm."""
        return tokens.signals.features.norm(dim=1)


def blocks(rows: int, columns: int, side: int = 2) -> list[list[int]]:
    """Patches of every block of a picture, row by row."""
    patch = torch.arange(rows * columns).view(rows // side, side, columns // side, side)
    return patch.permute(0, 2, 1, 3).reshape(-1, side * side).tolist()


def shifted(parts: list[list[int]], start: int) -> list[list[int]]:
    return [[start + patch for patch in part] for part in parts]


def geometry(name: str, model, inputs) -> list[list[int]]:
    """The patches of every visual token, as the papers tell."""
    if name in ("llava", "vipllava"):
        return [[37 * image + 1 + patch] for image in range(3) for patch in range(36)]
    if name in ("paligemma", "janus", "deepseek_vl"):
        return [[patch] for patch in range(108)]
    if name == "pixtral":
        return [[patch] for patch in range(24 + 32 + 64)]
    if name in ("gemma3", "aya_vision", "cohere2_vision", "ovis2", "smolvlm", "idefics3"):
        return [part for image in range(3) for part in shifted(blocks(6, 6), 36 * image)]
    if name == "internvl":
        return [part for tile in range(6) for part in shifted(blocks(6, 6), 37 * tile + 1)]
    if name == "llama4":
        return [part for image in range(3) for part in shifted(blocks(6, 6), 37 * image)]
    if name in ("mistral3", "lighton_ocr"):
        sizes, starts = [(6, 4), (4, 8), (8, 8)], [0, 24, 56]
        return [p for size, start in zip(sizes, starts, strict=True) for p in shifted(blocks(*size), start)]
    if name == "lfm2_vl":
        return [p for image, grid in enumerate(GRIDS) for p in shifted(blocks(*grid[1:]), 36 * image)]
    if name in ("qwen2_vl", "qwen3_vl", "glm4v", "ernie4_5_vl_moe"):
        return [list(range(4 * token, 4 * token + 4)) for token in range(23)]
    if name == "paddleocr_vl":
        starts = [0, 24, 56]
        return [p for grid, start in zip(GRIDS, starts, strict=True) for p in shifted(blocks(*grid[1:]), start)]
    if name == "qwen2_5_vl":
        vision = tower(model, "image")
        order, _ = get_vision_window_index(
            inputs["image_grid_thw"],
            spatial_merge_size=2,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
            kwargs={},
        )
        return [list(range(4 * place, 4 * place + 4)) for place in order.argsort().tolist()]
    assert name == "llava_next"
    number = torch.arange(15 * 37, dtype=torch.float32).view(15, 37)[:, 1:, None]
    tiles = [3, 3, 5]
    used = torch.cat([number[5 * image : 5 * image + count] for image, count in enumerate(tiles)])
    used = used - torch.repeat_interleave(torch.tensor([0.0, 2 * 37, 4 * 37]), torch.tensor(tiles))[:, None, None]
    packed, _ = model.base_model.pack_image_features(
        used.split(tiles), inputs["image_sizes"], "default", image_newline=torch.full((1,), torch.nan)
    )
    return [[] if torch.isnan(row) else [int(row)] for row in torch.cat(packed)[:, 0]]


SHAPES = sorted(set(BUILDERS) - BLIND - UNTOLD)


def averaged(rows: torch.Tensor, parts: list[list[int]]) -> torch.Tensor:
    return torch.stack([rows[part].mean(0) if part else torch.zeros_like(rows[0]) for part in parts])


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_signals_stand_on_the_tokens_of_their_patches(name):
    """Encoder states, keys and attention, patch by patch, against the geometry told by hand."""
    host = build(name)
    inputs = host.inputs(rows=EVERY)
    layers = attention_layers(tower(host.model, "image"))
    last = 2 if name == "vipllava" else -2 if name in ("llava", "llava_next") else -1
    states, calls = [], []
    hook = layers[last][0].register_forward_hook(lambda m, a, out: states.append(out[0] if type(out) is tuple else out))
    with attended(layers[last][1], calls):
        tokens = encode(host.model, inputs).tokens
    hook.remove()
    tokens = encode(host.model, inputs, SIGNALS).tokens
    parts, inside = geometry(name, host.model, inputs), tokens.candidates
    assert len(parts) == int(inside.sum())
    told = tokens.signals
    flat = torch.cat([state.flatten(0, -2) for state in states])
    torch.testing.assert_close(told.features[inside], averaged(flat, parts), atol=1e-5, rtol=0)
    keys = torch.cat([call.keys.mean(1).flatten(0, 1) for call in calls])
    torch.testing.assert_close(told.keys[inside], averaged(keys, parts), atol=1e-5, rtol=0)
    received = torch.cat([call.received().flatten() for call in calls])
    torch.testing.assert_close(told.received_attention[inside], averaged(received, parts), atol=1e-6, rtol=0)
    assert (told.cls_attention is not None) == (name in WITH_CLS)
    if name in WITH_CLS:
        row = 36 if name == "llama4" else 0
        cls = calls[0].weights(row, row + 1)[:, 0].flatten()
        torch.testing.assert_close(told.cls_attention[inside], averaged(cls, parts), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["internvl", "gemma3", "smolvlm", "mistral3", "pixtral", "aya_vision", "paligemma"])
@torch.no_grad()
def test_attention_is_that_of_eager_layers(name):
    host, eager = build(name), build(name, "eager")
    inputs = host.inputs(rows=EVERY)
    layers, calls = attention_layers(tower(host.model, "image")), []
    with attended(layers[-1][1], calls):
        encode(host.model, inputs)
    given = {key: inputs[key] for key in ("pixel_values", "pixel_attention_mask", "image_sizes") if key in inputs}
    output = eager.model.base_model.get_image_features(**given, output_attentions=True, return_dict=True)
    expected = output.attentions[-1].mean(1)
    got = calls[0].weights(0, expected.shape[1])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    seen = (expected > 0).sum(1)
    torch.testing.assert_close(calls[0].received(), expected.sum(1) / seen, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_what_a_host_cannot_give_is_refused_by_name(name):
    host = build(name)
    inputs = host.inputs()
    present = encode(host.model, inputs, SIGNALS).tokens.signals.present
    if name in BLIND:
        assert not present
        with pytest.raises(ValueError, match="Norms needs features"):
            compress(host.model, inputs, Norms(), keep=0.5)
    else:
        assert present >= {"features", "keys", "received_attention"}
        assert compress(host.model, inputs, Norms(), keep=0.5).plan.num_kept.min() >= 1
    assert ("cls_attention" in present) == (name in WITH_CLS)
    if name not in WITH_CLS:
        with pytest.raises(ValueError, match="Saliency needs cls_attention"):
            compress(host.model, inputs, Saliency(), keep=0.5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_chosen_layer(attention):
    host, eager = build("llava", attention), build("llava", "eager")
    inputs = host.inputs(rows=EVERY)
    tower_output = tower(eager.model, "image")(inputs["pixel_values"], output_attentions=True)
    for layer in (0, -1):
        told = encode(host.model, inputs, SIGNALS, signal_layer=layer).tokens
        expected = tower_output.attentions[layer].mean(1)[:, 0, 1:].flatten()
        got = told.signals.cls_attention[told.candidates]
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="signal_layer is 3, but the tower has 3 attention layers"):
        encode(host.model, inputs, SIGNALS, signal_layer=3)


def test_never_the_whole_matrix(monkeypatch):
    """One row of attention for [CLS], a few queries at once for what is received."""
    host = build("llava")
    monkeypatch.setattr(attentions, "QUERIES_AT_ONCE", 8)
    with softmax_shapes() as shapes:
        encode(host.model, host.inputs(), ["cls_attention"])
    assert set(shapes) == {(3, 2, 1, 37)}
    with softmax_shapes() as shapes:
        encode(host.model, host.inputs(), ["received_attention"])
    assert {shape[2] for shape in shapes} == {8, 5} and len(shapes) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_numbered_in_any_float_type(dtype):
    """600 rows, each of the patches that a shuffle deals it, some patches of none; and a patch of two rows."""
    torch.manual_seed(0)
    dealt = torch.cat([torch.arange(600), torch.arange(600), torch.full((50,), -1)])[torch.randperm(1250)]
    state = torch.randn(1, 1250, 8).to(dtype).requires_grad_()
    inner, outer = torch.randn(8, 8).to(dtype), torch.randn(8, 16).to(dtype)
    mixed = torch.nn.functional.gelu(state[0] @ inner)
    rows = torch.zeros(600, 8, dtype=dtype).index_add(0, dealt[dealt >= 0], mixed[dealt >= 0]) @ outer
    assert torch.equal(reached(rows, [state]), dealt)
    assert reached(torch.cat([rows, rows[:1]]), [state]) is None
    assert reached(rows.detach(), [state]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_without_activations_tells_the_same_rows(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state = torch.randn(12, 8, dtype=dtype, requires_grad=True)
    order, gate = torch.randperm(12), torch.nn.Linear(8, 8).to(dtype).requires_grad_(False)

    def project(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.layer_norm(x, (8,))
        hidden = torch.nn.functional.silu(gate(hidden)) * hidden
        return hidden[order].view(4, 3, 8).relu().mean(1).sqrt()

    whole = reached(project(state), [state])
    with shapes_only():
        rows = project(state)
        mixed = (rows @ rows.T).softmax(1) @ rows
    assert torch.equal(reached(rows, [state]), order.argsort() // 3)
    assert torch.equal(rows, project(state))
    assert whole is not None and torch.equal(whole, order.argsort() // 3)
    assert reached(mixed, [state]) is None


def test_gradients_go_on_to_a_tower_that_is_trained():
    host = build("internvl")
    weight = tower(host.model, "image").embeddings.patch_embeddings.projection.weight
    weight.requires_grad_()
    try:
        encoded = encode(host.model, host.inputs(), SIGNALS)
        encoded.tokens.x[encoded.tokens.candidates].sum().backward()
        assert weight.grad.norm() > 0
        with torch.no_grad():
            assert not encode(host.model, host.inputs(), SIGNALS).tokens.x.requires_grad
    finally:
        weight.requires_grad_(False)
        weight.grad = None


def test_contexts_may_overlap_without_nesting():
    """As in two threads, of which neither ends last."""
    host = build("llava")
    (_, first), (_, second) = attention_layers(host.model.model.vision_tower)[:2]
    stock = ALL_ATTENTION_FUNCTIONS.get_interface
    one, other = [], []
    contexts = attended(first, one), attended(second, other)
    contexts[0].__enter__()
    contexts[1].__enter__()
    host.model.get_image_features(host.inputs()["pixel_values"])
    contexts[0].__exit__(None, None, None)
    host.model.get_image_features(host.inputs()["pixel_values"])
    contexts[1].__exit__(None, None, None)
    host.model.get_image_features(host.inputs()["pixel_values"])
    assert len(one) == 1 and len(other) == 2
    assert stock == ALL_ATTENTION_FUNCTIONS.get_interface
