"""Models of another family than LLaVA are loaded from a folder and answer through their own processor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3Processor, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from crtc.methods import KMeans
from crtc.plugins.chat import Chat, Dialogue
from crtc.plugins.recipe import Recipe
from tests.hosts.families import IMG, VOCABULARY, build

BEGIN, END = 192, 193
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image_begin>{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endfor %}w7"
)
OPTIONS = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 3 of 9 tokens per image with a processor whose words are w0, w1 and so on."""
    folder = tmp_path_factory.mktemp("gemma3")
    named = {IMG: "<image>", BEGIN: "<image_begin>", END: "<image_end>", 0: "<pad>"}
    core = Tokenizer(models.WordLevel({named.get(i, f"w{i}"): i for i in range(VOCABULARY)}, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token="<pad>",
        extra_special_tokens={
            "image_token": "<image>",
            "boi_token": "<image_begin>",
            "eoi_token": "<image_end>",
        },
    )
    pixels = Gemma3ImageProcessorPil(size={"height": 24, "width": 24})
    Gemma3Processor(pixels, tokenizer, chat_template=TEMPLATE, image_seq_length=9).save_pretrained(folder)
    build("gemma3").model.save_pretrained(folder)
    return folder


def dialogues() -> list[Dialogue]:
    """One image, two images, none; of different length."""
    drawn = np.random.default_rng(0)
    images = [Image.fromarray(drawn.integers(0, 255, (24, 24, 3), dtype=np.uint8)) for _ in range(3)]

    def ask(text: str, *images: Image.Image) -> Dialogue:
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
        return [{"role": "user", "content": content}]

    return [ask("w11 w12", images[0]), ask("w13 w14 w15 w16", *images[1:]), ask("w17")]


def test_batches_are_as_dialogues_alone(folder: Path) -> None:
    chat = Chat(str(folder), Recipe(KMeans(), count=4), dtype="float32", device="cpu")
    asked = dialogues()
    together = chat.answer(asked, OPTIONS)
    assert together == [chat.answer([one], OPTIONS)[0] for one in asked]


def test_keeping_all_is_the_model_as_it_is(folder: Path) -> None:
    chat = Chat(str(folder), Recipe(KMeans(), keep=1), dtype="float32", device="cpu")
    asked = dialogues()[1:2]
    inputs = chat.processor.apply_chat_template(asked, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        stock = chat.model.generate(**inputs, do_sample=False, **OPTIONS)[0, inputs["input_ids"].shape[1] :]
    assert chat.answer(asked, OPTIONS)[0] == chat.processor.decode(stock, skip_special_tokens=True).strip()
    fewer = Chat(str(folder), Recipe(KMeans(), count=1), dtype="float32", device="cpu")
    assert fewer.answer(asked, OPTIONS) != chat.answer(asked, OPTIONS)
