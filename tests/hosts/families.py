"""Tiny random models of every family, and prompts for them: three images, the first in one row, two in another."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from packaging.version import Version

IMG, VID, START, END, PAD = 190, 191, 192, 193, 0
WIDTH, VOCABULARY = 32, 199
ROWS = ((0,), (1, 2))
Rows = Sequence[Sequence[int]]
Inputs = dict[str, Any]


def before(release: str) -> bool:
    """Whether transformers is older: what its stock models cannot do yet is left out of the tests."""
    return Version(hf.__version__) < Version(release)


@dataclass(frozen=True)
class Picture:
    """An image or a clip in a prompt: its placeholder, and the lengths of the runs that text stands between."""

    runs: tuple[int, ...]
    token: int = IMG


@dataclass(frozen=True)
class Host:
    """A model and what it is shown.

    Args:
        model: random weights.
        pictures: three.
        look: pixel inputs of the rows, each a list of picture numbers.
        types: inputs beside ids that tell visual tokens from text.
    """

    model: Any
    pictures: tuple[Picture, ...]
    look: Callable[[Rows], Inputs]
    types: tuple[str, ...] = ()

    def inputs(self, rows: Rows = ROWS, side: str = "left", dtype: torch.dtype = torch.float32) -> Inputs:
        """Prompts, padded; a row has the same text alone and among others."""
        texts = []
        for row in rows:
            drawn = torch.Generator().manual_seed(100 + (row[0] if row else 50))

            def words(number: int, drawn: torch.Generator = drawn) -> list[int]:
                return torch.randint(3, 180, (number,), generator=drawn).tolist()

            text = [1, *words(3)]
            for picture in row:
                for run in self.pictures[picture].runs:
                    text += [START, *[self.pictures[picture].token] * run, END, *words(2)]
            texts.append(text + words(5 + 2 * len(row)))
        length = max(map(len, texts))
        ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
        for number, text in enumerate(texts):
            part = slice(length - len(text), length) if side == "left" else slice(len(text))
            ids[number, part], mask[number, part] = torch.tensor(text), 1
        found = {"input_ids": ids, "attention_mask": mask}
        kinds = (ids == IMG).int() + 2 * (ids == VID).int()
        for name in self.types:
            found[name] = kinds.clone() if name != "token_type_ids" else kinds.long()
        for name, value in self.look(rows).items():
            found[name] = value.to(dtype) if value.is_floating_point() else value
        return found


BUILDERS: dict[str, Callable[[int], Host]] = {}


def family(builder: Callable[[int], Host]) -> Callable[[int], Host]:
    """A builder, found by its name; it is told the number of layers of the language model."""
    BUILDERS[builder.__name__] = builder
    return builder


@functools.cache
def build(name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, layers: int = 3) -> Host:
    """A host of a family, weights wide enough that argmax depends on the prompt; tests leave it as it is."""
    torch.manual_seed(0)
    host = BUILDERS[name](layers)
    model = host.model.eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.12)
    model.set_attn_implementation(attention)
    model.get_decoder().set_attn_implementation(attention)  # some towers do not follow, and hold the model back
    assert model.get_decoder().config._attn_implementation == attention == model.config.text_config._attn_implementation
    model.set_experts_implementation("eager")  # the other one knows no float64
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = list(range(187, VOCABULARY))  # random weights would answer with images
    model.requires_grad_(False)
    with torch.no_grad():  # the stock tower keeps hooks of its own from its first run on
        model(**host.inputs(dtype=dtype))
    return host


def text_config(layers: int, **more: Any) -> Inputs:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **more,
    }


SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
SQUARE = {**SMALL, "image_size": 24, "patch_size": 4}


def siglip(**more: Any) -> Any:
    return hf.SiglipVisionConfig(**{**SQUARE, "vision_use_head": False, **more})


def clip() -> Any:
    return hf.CLIPVisionConfig(**SQUARE, projection_dim=8)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def chosen(rows: Rows) -> list[int]:
    return [picture for row in rows for picture in row]


def stacked(run: int, size: int = 24, *, token: int = IMG, **more: Any) -> tuple[tuple[Picture, ...], Any]:
    """Three square images of as many tokens each."""
    pixels = draw(3, 3, size, size)
    return (Picture((run,), token),) * 3, lambda rows: {"pixel_values": pixels[chosen(rows)], **more}


def sized(sizes: Sequence[Sequence[int]], run: Callable[[int, int], int], size: int) -> Any:
    """Three images of different size in one padded tensor."""
    pixels, told = draw(3, 3, size, size), torch.tensor(sizes)
    return tuple(Picture((run(*one),)) for one in sizes), lambda rows: {
        "pixel_values": pixels[chosen(rows)],
        "image_sizes": told[chosen(rows)],
    }


@family
def llava(layers: int) -> Host:
    config = hf.LlavaConfig(
        vision_config=clip(), text_config=hf.LlamaConfig(**text_config(layers)), image_token_index=IMG
    )
    return Host(hf.LlavaForConditionalGeneration(config), *stacked(36))


@family
def pixtral(layers: int) -> Host:
    text = hf.MistralConfig(**text_config(layers), sliding_window=None)
    vision = hf.PixtralVisionConfig(**{**SMALL, "num_hidden_layers": 2}, image_size=32, patch_size=4, head_dim=8)
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMG,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    sizes = [(24, 16), (16, 32), (32, 32)]
    return Host(hf.LlavaForConditionalGeneration(config), *sized(sizes, lambda h, w: h * w // 16, 32))


@family
def mistral3(layers: int) -> Host:
    text = hf.MistralConfig(**text_config(layers), sliding_window=None)
    vision = hf.PixtralVisionConfig(**{**SMALL, "num_hidden_layers": 2}, image_size=32, patch_size=4, head_dim=8)
    config = hf.Mistral3Config(
        vision_config=vision,
        text_config=text,
        image_token_index=IMG,
        spatial_merge_size=2,
        multimodal_projector_bias=False,
    )
    sizes = [(24, 16), (16, 32), (32, 32)]
    return Host(hf.Mistral3ForConditionalGeneration(config), *sized(sizes, lambda h, w: h * w // 64, 32))


@family
def vipllava(layers: int) -> Host:
    config = hf.VipLlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**text_config(layers)),
        image_token_index=IMG,
        vision_feature_layers=[0, 0, 1, 2, 3],
    )
    return Host(hf.VipLlavaForConditionalGeneration(config), *stacked(36))


PINPOINTS = [[24, 48], [48, 24], [48, 48]]


def any_resolution(model: Any, side: int = 24, **options: Any) -> Host:
    """Three images cut into tiles of which some are cropped, each row of patches with a newline."""
    pixels, sizes = draw(3, 5, 3, side, side), torch.tensor([[24, 48], [40, 20], [48, 48]]) * side // 24

    def look(rows: Rows) -> Inputs:
        more = {name: value[chosen(rows)] for name, value in options.items()}
        return {"pixel_values": pixels[chosen(rows)], "image_sizes": sizes[chosen(rows)], **more}

    with torch.no_grad():
        rows = model.model.get_image_features(**look(((0, 1, 2),)), return_dict=True)
    units = rows.pooler_output if rows.pooler_output is not None else rows.deepstack_features[0][1]
    return Host(model, tuple(Picture((len(unit),)) for unit in units), look)


@family
def llava_next(layers: int) -> Host:
    config = hf.LlavaNextConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**text_config(layers)),
        image_token_index=IMG,
        image_grid_pinpoints=PINPOINTS,
    )
    return any_resolution(hf.LlavaNextForConditionalGeneration(config))


def filmed(model: Any) -> Host:
    """Three clips of four frames."""
    pixels = draw(3, 4, 3, 24, 24)
    with torch.no_grad():
        clips = model.model.get_video_features(pixel_values_videos=pixels, return_dict=True).pooler_output
    pictures = tuple(Picture((one.shape[:-1].numel(),), VID) for one in clips)
    return Host(model, pictures, lambda rows: {"pixel_values_videos": pixels[chosen(rows)]})


@family
def llava_next_video(layers: int) -> Host:
    config = hf.LlavaNextVideoConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**text_config(layers)),
        image_token_index=IMG,
        video_token_index=VID,
        image_grid_pinpoints=PINPOINTS,
    )
    return filmed(hf.LlavaNextVideoForConditionalGeneration(config))


def onevision(layers: int) -> Any:
    config = hf.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=hf.Qwen2Config(**text_config(layers)),
        image_token_index=IMG,
        video_token_index=VID,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


@family
def llava_onevision(layers: int) -> Host:
    return any_resolution(onevision(layers), batch_num_images=torch.tensor([1, 1, 1]))


@family
def llava_onevision_video(layers: int) -> Host:
    return filmed(onevision(layers))


@family
def video_llava(layers: int) -> Host:
    config = hf.VideoLlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**text_config(layers)),
        image_token_index=IMG,
        video_token_index=VID,
        image_seq_length=36,
    )
    pixels = draw(3, 4, 3, 24, 24)
    return Host(
        hf.VideoLlavaForConditionalGeneration(config),
        (Picture((4 * 37,), VID),) * 3,
        lambda rows: {"pixel_values_videos": pixels[chosen(rows)]},
    )


ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
GRIDS = ((1, 4, 6), (1, 8, 4), (1, 6, 6))
MM = ("mm_token_type_ids",)
TURNING = {
    "hidden_size": 16,
    "num_heads": 2,
    "depth": 3,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "intermediate_size": 24,
}


def packed(model: Any, *shape: int, types: tuple[str, ...] = MM) -> Host:
    """Three images of different size, patches packed one behind the other."""
    grids = torch.tensor(GRIDS)
    patches = draw(int(grids.prod(1).sum()), *shape).split(grids.prod(1).tolist())

    def look(rows: Rows) -> Inputs:
        pixels = torch.cat([patches[picture] for picture in chosen(rows)])
        return {"pixel_values": pixels, "image_grid_thw": grids[chosen(rows)]}

    return Host(model, tuple(Picture((grid.prod().item() // 4,)) for grid in grids), look, types)


def qwen(model: Any, config: Any, vision: Inputs, layers: int, rope: Inputs = ROPE, **text: Any) -> Any:
    return model(
        config(
            vision_config=vision,
            text_config={**text_config(layers), "rope_parameters": rope, **text},
            image_token_id=IMG,
            video_token_id=VID,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )
    )


@family
def qwen2_vl(layers: int) -> Host:
    vision = {"depth": 3, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    return packed(qwen(hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLConfig, vision, layers), 96)


WINDOWED = {**TURNING, "out_hidden_size": WIDTH, "window_size": 16, "fullatt_block_indexes": [2]}


@family
def qwen2_5_vl(layers: int) -> Host:
    return packed(qwen(hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLConfig, WINDOWED, layers), 96)


@family
def qwen2_5_vl_video(layers: int) -> Host:
    vision = {**WINDOWED, "tokens_per_second": 2}
    model = qwen(hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLConfig, vision, layers)
    grids = torch.tensor([[3, 4, 6], [2, 8, 4], [4, 4, 4]])
    patches = draw(int(grids.prod(1).sum()), 96).split(grids.prod(1).tolist())
    seconds = torch.tensor([1.0, 1.0, 0.5])

    def look(rows: Rows) -> Inputs:
        return {
            "pixel_values_videos": torch.cat([patches[picture] for picture in chosen(rows)]),
            "video_grid_thw": grids[chosen(rows)],
            "second_per_grid_ts": seconds[chosen(rows)],
        }

    return Host(model, tuple(Picture((grid.prod().item() // 4,), VID) for grid in grids), look, MM)


DEEP = {**TURNING, "out_hidden_size": WIDTH, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}


@family
def qwen3_vl(layers: int) -> Host:
    return packed(qwen(hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig, DEEP, layers), 96)


@family
def qwen3_vl_mixed(layers: int) -> Host:
    """An image in the first row, a clip of two frames and an image in the second."""
    model = qwen(hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig, DEEP, layers)
    grids = torch.tensor([[1, 4, 6], [2, 4, 4], [1, 6, 6]])
    patches = draw(int(grids.prod(1).sum()), 96).split(grids.prod(1).tolist())

    def look(rows: Rows) -> Inputs:
        found = {}
        for name, pixels, some in (("image", "pixel_values", {0, 2}), ("video", "pixel_values_videos", {1})):
            there = [picture for picture in chosen(rows) if picture in some]
            if there:
                found[pixels] = torch.cat([patches[picture] for picture in there])
                found[f"{name}_grid_thw"] = grids[there]
        return found

    return Host(model, (Picture((6,)), Picture((4, 4), VID), Picture((9,))), look, MM)


@family
def qwen3_vl_moe(layers: int) -> Host:
    experts = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
    return packed(qwen(hf.Qwen3VLMoeForConditionalGeneration, hf.Qwen3VLMoeConfig, DEEP, layers, **experts), 96)


@family
def qwen3_5(layers: int) -> Host:
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    vision = {**TURNING, "out_hidden_size": WIDTH, "num_position_embeddings": 64}
    model = qwen(
        hf.Qwen3_5ForConditionalGeneration,
        hf.Qwen3_5Config,
        vision,
        layers,
        rope={**ROPE, "partial_rotary_factor": 1.0},
        layer_types=kinds[:layers],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    return packed(model, 96)


@family
def qwen3_omni(layers: int) -> Host:
    audio = {
        "d_model": 32,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "encoder_layers": 1,
        "num_mel_bins": 20,
        "downsample_hidden_size": 16,
        "n_window": 50,
        "output_dim": 32,
        "n_window_infer": 100,
    }
    experts = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
    config = hf.Qwen3OmniMoeThinkerConfig(
        vision_config=DEEP,
        audio_config=audio,
        text_config={**text_config(layers), "rope_parameters": {**ROPE, "interleaved": True}, **experts},
        image_token_id=IMG,
        video_token_id=VID,
        audio_token_id=189,
        vision_start_token_id=START,
        vision_end_token_id=END,
        audio_start_token_id=188,
        audio_end_token_id=187,
    )
    return packed(hf.Qwen3OmniMoeThinkerForConditionalGeneration(config), 96, types=())


def glm(model: Any, config: Any, layers: int, **kinds: str) -> Host:
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "patch_size": 4,
        "image_size": 24,
        "out_hidden_size": WIDTH,
        "intermediate_size": 24,
        "spatial_merge_size": 2,
    }
    text = {**text_config(layers), "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}
    if kinds:
        vision, text = {**vision, "model_type": kinds["vision"]}, {**text, "model_type": kinds["text"]}
    made = config(
        vision_config=vision,
        text_config=text,
        image_token_id=IMG,
        video_token_id=VID,
        image_start_token_id=START,
        image_end_token_id=END,
    )
    return packed(model(made), 96)


@family
def glm4v(layers: int) -> Host:
    return glm(hf.Glm4vForConditionalGeneration, hf.Glm4vConfig, layers)


@family
def glm46v(layers: int) -> Host:
    return glm(hf.Glm46VForConditionalGeneration, hf.Glm46VConfig, layers, vision="glm4v_vision", text="glm4v_text")


@family
def paddleocr_vl(layers: int) -> Host:
    config = hf.PaddleOCRVLConfig(
        vision_config={**SQUARE, "num_hidden_layers": 2},
        text_config={**text_config(layers), "rope_parameters": ROPE},
        image_token_id=IMG,
        video_token_id=VID,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return packed(hf.PaddleOCRVLForConditionalGeneration(config), 3, 4, 4)


@family
def ernie4_5_vl_moe(layers: int) -> Host:
    text = {
        **text_config(layers),
        "moe_intermediate_size": [24, 24],
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "rope_parameters": ROPE,
        "mlp_layer_types": ["dense", "sparse", "sparse"][:layers],
    }
    config = hf.Ernie4_5_VLMoeConfig(
        vision_config={"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "intermediate_size": 24},
        text_config=text,
        image_token_id=IMG,
        video_token_id=VID,
        image_start_token_id=START,
        image_end_token_id=END,
    )
    return packed(hf.Ernie4_5_VLMoeForConditionalGeneration(config), 48, types=(*MM, "moe_mm_token_type_ids"))


@family
def internvl(layers: int) -> Host:
    """Images of 2, 3 and 1 tiles."""
    vision = hf.InternVLVisionConfig(**SMALL, image_size=[24, 24], patch_size=[4, 4])
    text = hf.Qwen2Config(**text_config(layers))
    config = hf.InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMG, image_seq_length=9)
    tiles = draw(6, 3, 24, 24).split([2, 3, 1])
    return Host(
        hf.InternVLForConditionalGeneration(config),
        (Picture((18,)), Picture((27,)), Picture((9,))),
        lambda rows: {"pixel_values": torch.cat([tiles[picture] for picture in chosen(rows)])},
    )


def by_prompt(model: Any, run: int) -> Host:
    """Images of a prompt side by side, an empty one where there are fewer."""
    pixels = draw(3, 3, 24, 24)

    def look(rows: Rows) -> Inputs:
        most = max(map(len, rows))
        full = torch.zeros(len(rows), most, 3, 24, 24)
        for number, row in enumerate(rows):
            full[number, : len(row)] = pixels[list(row)]
        return {"pixel_values": full, "pixel_attention_mask": torch.ones(len(rows), most, 24, 24, dtype=torch.long)}

    return Host(model, (Picture((run,)),) * 3, look)


def idefics(model: Any, config: Any, vision: Any, layers: int) -> Host:
    made = config(
        vision_config=vision(**SQUARE),
        text_config=hf.LlamaConfig(**text_config(layers)),
        image_token_id=IMG,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return by_prompt(model(made), 9)


@family
def smolvlm(layers: int) -> Host:
    return idefics(hf.SmolVLMForConditionalGeneration, hf.SmolVLMConfig, hf.SmolVLMVisionConfig, layers)


@family
def idefics3(layers: int) -> Host:
    return idefics(hf.Idefics3ForConditionalGeneration, hf.Idefics3Config, hf.Idefics3VisionConfig, layers)


@family
def idefics2(layers: int) -> Host:
    perceiver = {
        "hidden_size": WIDTH,
        "resampler_n_latents": 8,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 8,
        "num_key_value_heads": 1,
    }
    config = hf.Idefics2Config(
        vision_config={**SQUARE, "num_hidden_layers": 2},
        perceiver_config=perceiver,
        text_config=hf.MistralConfig(**text_config(layers), sliding_window=None),
        image_token_id=IMG,
    )
    return by_prompt(hf.Idefics2ForConditionalGeneration(config), 8)


def gemma(layers: int, window: int) -> Host:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    text = hf.Gemma3TextConfig(
        **text_config(layers), sliding_window=window, layer_types=kinds[:layers], query_pre_attn_scalar=8
    )
    config = hf.Gemma3Config(
        vision_config=siglip(),
        text_config=text,
        image_token_index=IMG,
        boi_token_index=START,
        eoi_token_index=END,
        mm_tokens_per_image=9,
    )
    return Host(hf.Gemma3ForConditionalGeneration(config), *stacked(9), ("token_type_ids",))


@family
def gemma3(layers: int) -> Host:
    return gemma(layers, 256)


@family
def gemma3_narrow(layers: int) -> Host:
    """A window shorter than the prompt."""
    return gemma(layers, 16)


@family
def gemma4(layers: int) -> Host:
    vision = {
        **SMALL,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    }
    text = {
        **text_config(layers),
        "sliding_window": 256,
        "layer_types": ["full_attention"] if layers == 1 else ["sliding_attention"] * (layers - 1) + ["full_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 8,
        "use_bidirectional_attention": "vision",
    }
    config = hf.Gemma4Config(
        vision_config=vision,
        text_config=text,
        audio_config=None,
        image_token_id=IMG,
        video_token_id=VID,
        boi_token_id=START,
        eoi_token_id=END,
        boa_token_id=197,
        audio_token_id=198,
        eoa_token_index=196,
    )
    place, pixels = torch.full((3, 36, 2), -1), torch.zeros(3, 36, 48)
    for number, (_, rows, columns) in enumerate(GRIDS):
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
        place[number, : len(cells)], pixels[number, : len(cells)] = cells, draw(len(cells), 48).sigmoid()
    return Host(
        hf.Gemma4ForConditionalGeneration(config),
        tuple(Picture((rows * columns // 4,)) for _, rows, columns in GRIDS),
        lambda rows: {"pixel_values": pixels[chosen(rows)], "image_position_ids": place[chosen(rows)]},
        MM,
    )


@family
def paligemma(layers: int) -> Host:
    text = hf.GemmaConfig(**text_config(layers))
    config = hf.PaliGemmaConfig(vision_config=siglip(), text_config=text, image_token_index=IMG, projection_dim=WIDTH)
    pictures, look = stacked(36)
    host = Host(hf.PaliGemmaForConditionalGeneration(config), pictures, look)
    return _Prefix(host.model, host.pictures, host.look)


class _Prefix(Host):
    """All of a prompt is read in both directions: its tokens are of type 0."""

    def inputs(self, rows: Rows = ROWS, side: str = "left", dtype: torch.dtype = torch.float32) -> Inputs:
        found = super().inputs(rows, side, dtype)
        return {**found, "token_type_ids": torch.zeros_like(found["input_ids"])}


@family
def llama4(layers: int) -> Host:
    vision = hf.Llama4VisionConfig(
        **{**SQUARE, "intermediate_size": 64, "num_hidden_layers": 2},
        vision_output_dim=16,
        projector_input_dim=16,
        projector_output_dim=16,
        pixel_shuffle_ratio=0.5,
    )
    text = hf.Llama4TextConfig(
        **text_config(layers),
        intermediate_size_mlp=48,
        num_local_experts=2,
        attention_chunk_size=256,
        no_rope_layers=[1, 0, 1][:layers],
    )
    config = hf.Llama4Config(
        vision_config=vision, text_config=text, image_token_index=IMG, boi_token_index=START, eoi_token_index=END
    )
    return Host(hf.Llama4ForConditionalGeneration(config), *stacked(9))


@family
def aya_vision(layers: int) -> Host:
    config = hf.AyaVisionConfig(
        vision_config=siglip(),
        text_config=hf.Cohere2Config(**text_config(layers)),
        image_token_index=IMG,
        downsample_factor=2,
        vision_feature_layer=-1,
        adapter_layer_norm_eps=1e-6,
    )
    return Host(hf.AyaVisionForConditionalGeneration(config), *stacked(9))


@family
def cohere2_vision(layers: int) -> Host:
    config = hf.Cohere2VisionConfig(
        vision_config=siglip(),
        text_config=hf.Cohere2Config(**text_config(layers)),
        image_token_id=IMG,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    return Host(hf.Cohere2VisionForConditionalGeneration(config), *stacked(9))


@family
def ovis2(layers: int) -> Host:
    vision = {**SQUARE, "num_hidden_layers": 2, "vocab_size": 50, "hidden_stride": 2, "num_visual_indicator_tokens": 5}
    config = hf.Ovis2Config(
        vision_config=vision,
        text_config=hf.Qwen2Config(**text_config(layers)),
        image_token_id=IMG,
        visual_indicator_token_ids=[194, 195, 196, 197, 198],
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
    )
    return Host(hf.Ovis2ForConditionalGeneration(config), *stacked(9))


@family
def got_ocr2(layers: int) -> Host:
    vision = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 4,
        "mlp_dim": 24,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    text = hf.Qwen2Config(**text_config(layers))
    config = hf.GotOcr2Config(vision_config=vision, text_config=text, image_token_index=IMG, image_seq_length=16)
    return Host(hf.GotOcr2ForConditionalGeneration(config), *stacked(16, 64))


@family
def janus(layers: int) -> Host:
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": 4,
        "mlp_ratio": 2,
        "projection_dim": WIDTH,
        "depth": 2,
    }
    codes = {
        "embed_dim": 8,
        "num_embeddings": 16,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "projection_dim": WIDTH,
        "image_token_embed_dim": 8,
        "num_patches": 9,
    }
    config = hf.JanusConfig(
        vision_config=vision, vq_config=codes, text_config=hf.LlamaConfig(**text_config(layers)), image_token_id=IMG
    )
    return Host(hf.JanusForConditionalGeneration(config), *stacked(36))


@family
def deepseek_vl(layers: int) -> Host:
    text = hf.LlamaConfig(**text_config(layers))
    config = hf.DeepseekVLConfig(vision_config=siglip(), text_config=text, image_token_id=IMG)
    return Host(hf.DeepseekVLForConditionalGeneration(config), *stacked(36))


@family
def lfm2_vl(layers: int) -> Host:
    vision = hf.Siglip2VisionConfig(
        **{**SMALL, "num_hidden_layers": 2}, num_patches=36, patch_size=4, vision_use_head=False
    )
    text = hf.Lfm2Config(**text_config(layers, layer_types=["conv", "full_attention", "conv"][:layers]))
    config = hf.Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=IMG, downsample_factor=2, projector_hidden_size=24
    )
    sizes = torch.tensor([grid[1:] for grid in GRIDS])
    pixels, mask = torch.zeros(3, 36, 48), torch.zeros(3, 36, dtype=torch.long)
    for number, size in enumerate(sizes.prod(1).tolist()):
        pixels[number, :size], mask[number, :size] = draw(size, 48), 1
    return Host(
        hf.Lfm2VlForConditionalGeneration(config),
        tuple(Picture((size // 4,)) for size in sizes.prod(1).tolist()),
        lambda rows: {
            "pixel_values": pixels[chosen(rows)],
            "pixel_attention_mask": mask[chosen(rows)],
            "spatial_shapes": sizes[chosen(rows)],
        },
    )


@family
def granite4_vision(layers: int) -> Host:
    from transformers.models.granite4_vision.configuration_granite4_vision import Granite4VisionTextConfig

    former = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 24,
        "encoder_hidden_size": 64,
        "cross_attention_frequency": 1,
        "num_key_value_heads": 2,
    }
    config = hf.Granite4VisionConfig(
        vision_config=siglip(hidden_size=64, image_size=32),
        text_config=Granite4VisionTextConfig(**text_config(layers)),
        image_token_index=IMG,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        deepstack_layer_map=[[1, 0], [2, min(1, layers - 1)]],
        spatial_target_layers=[0, 1, 2, 2],
        qformer_config=former,
    )
    return any_resolution(hf.Granite4VisionForConditionalGeneration(config), 32)


@family
def lighton_ocr(layers: int) -> Host:
    """A family that nobody looked at when the mechanism was made: it has to come by itself."""
    vision = {**SMALL, "model_type": "pixtral", "image_size": 32, "patch_size": 4, "head_dim": 8}
    text = {**text_config(layers), "model_type": "qwen3"}
    config = hf.LightOnOcrConfig(vision_config=vision, text_config=text, image_token_id=IMG, spatial_merge_size=2)
    sizes = [(24, 16), (16, 32), (32, 32)]
    return Host(hf.LightOnOcrForConditionalGeneration(config), *sized(sizes, lambda h, w: h * w // 64, 32))


@family
def fuyu(layers: int) -> Host:
    """No vision tower: a patch is projected and is a token."""
    config = hf.FuyuConfig(
        text_config={**text_config(layers), "model_type": "persimmon"},
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        image_token_id=IMG,
        patch_size=4,
        num_channels=3,
        pad_token_id=PAD,
    )
    patches = draw(3, 12, 48)
    taken = inspect.signature(hf.FuyuModel.forward).parameters
    name = "pixel_values" if "pixel_values" in taken else "image_patches"  # the other name is passed over in silence
    return Host(
        hf.FuyuForCausalLM(config),
        (Picture((12,)),) * 3,
        lambda rows: {name: patches[chosen(rows)]},
    )


BROKEN = set() if before("5.24") else {"llama4"}
"""Families whose stock model cannot run: Llama 4 asks its decoder for `image_outputs`, which it does not give."""
for name in BROKEN:
    del BUILDERS[name]
