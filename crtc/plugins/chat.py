"""A stock model that answers dialogues with compressed images: what plug-ins of evaluation tools share."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image

from crtc.dtypes import resolve
from crtc.hosts import Positions
from crtc.hosts.stock import load_stock
from crtc.plugins.recipe import Recipe, chosen

Dialogue = Sequence[Mapping[str, Any]]
"""Messages of `role` and `content`, the content a list of `{"type": "text", "text": ...}` and
`{"type": "image", "image": ...}`, as chat templates take them.
"""

MAX_NEW_TOKENS = 1024


class Chat:
    """A stock model and how it compresses.

    Args:
        pretrained: "embedded", a folder, or an id of the Hugging Face hub.
        recipe: how its images are compressed.
        dtype: of the model; "auto" is the one that is fast on the device.
        device: of the model; a GPU if there is one, without.
        attention: implementation of attention.

    Raises:
        ValueError: if the model cannot be loaded or compressed, or the dtype is unknown.
    """

    def __init__(
        self,
        pretrained: str,
        recipe: Recipe,
        *,
        dtype: str = "auto",
        device: str | None = None,
        attention: str = "sdpa",
    ):
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.recipe = recipe
        self.model, self.processor = load_stock(
            pretrained, dtype=resolve(dtype, self.device), device=self.device, attention=attention
        )
        recipe.method.to(self.device)

    @torch.no_grad()
    def answer(self, dialogues: Sequence[Dialogue], options: Mapping[str, Any]) -> list[str]:
        """What the model says next in each dialogue; those without images are answered by the model as it is.

        Args:
            dialogues: answered side by side.
            options: of generating; greedy where they do not ask for a temperature.

        Raises:
            ValueError: if a dialogue holds anything but text and images, or its images cannot be compressed so.
        """
        settings, stops = generation(options, self.model.generation_config)
        shown = [bool(_images(dialogue)) for dialogue in dialogues]
        said = dict.fromkeys(range(len(dialogues)), "")
        for seen in (True, False):
            rows = [row for row, has in enumerate(shown) if has == seen]
            if rows:
                with self.recipe.on(self.model) if seen else nullcontext():
                    said.update(zip(rows, self._generate([dialogues[row] for row in rows], settings), strict=True))
        return [cut(text, stops).strip() for text in said.values()]

    def _generate(self, dialogues: list[Dialogue], settings: dict[str, Any]) -> list[str]:
        inputs = self.processor.apply_chat_template(
            dialogues,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True},
        ).to(self.device, self.model.dtype)
        output = self.model.generate(**inputs, **settings)
        new = output[:, inputs["input_ids"].shape[1] :]
        return list(self.processor.batch_decode(new, skip_special_tokens=True))


def chat_of(
    pretrained: str,
    *,
    method: str | None = None,
    scorer: str | None = None,
    keep: float | None = None,
    count: int | None = None,
    mass: bool = True,
    positions: Positions = "keep",
    dtype: str = "auto",
    device: str | None = None,
    attention: str = "sdpa",
    **settings: Any,
) -> Chat:
    """A chat from what the user of an evaluation tool writes.

    Args:
        pretrained: "embedded", a folder, or an id of the Hugging Face hub.
        method: name of the catalogue; the untrained one without.
        scorer: folder of a trained scorer in the place of a method.
        keep: fraction of every image's tokens to keep; 1 is the model as it is.
        count: whole tokens of every image to keep.
        mass: whether merged tokens draw as much attention as those they stand for.
        positions: `"keep"` or `"repack"`, as for `compressed`.
        dtype: of the model; "auto" is the one that is fast on the device.
        device: of the model; a GPU if there is one, without.
        attention: implementation of attention.
        settings: everything else is what the method takes to be made.

    Raises:
        ValueError: if an argument cannot be what it is, or the model cannot be loaded or compressed.
    """
    recipe = Recipe(chosen(method, scorer, **settings), keep, count, mass, positions)
    return Chat(pretrained, recipe, dtype=dtype, device=device, attention=attention)


def _images(dialogue: Dialogue) -> list[Image.Image]:
    parts = [part for message in dialogue for part in message["content"]]
    for part in parts:
        if part["type"] not in ("text", "image"):
            raise ValueError(f"a dialogue holds {part['type']!r}, expected text and images")
    return [part["image"] for part in parts if part["type"] == "image"]


def generation(options: Mapping[str, Any], known: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What `generate` is given, and the texts at which an answer ends, from the options of an evaluation tool.

    Tools write `temperature: 0` for greedy decoding and put options of other models beside those of generating: what
    the model's generation config does not know is left out with a warning.

    Args:
        options: of the task.
        known: generation config of the model.
    """
    given = {name: value for name, value in options.items() if value is not None}
    until = given.pop("until", ())
    stops = (until,) if isinstance(until, str) else tuple(until)
    foreign = sorted(name for name in given if not hasattr(known, name))
    if foreign:
        warnings.warn(f"left out what is no option of generating: {', '.join(foreign)}", stacklevel=2)
    settings = {"max_new_tokens": MAX_NEW_TOKENS, **{name: given[name] for name in given if name not in foreign}}
    temperature = settings.get("temperature", 1.0 if settings.get("do_sample") else 0)
    settings["do_sample"] = bool(settings.get("do_sample", True)) and temperature > 0
    if not settings["do_sample"]:
        settings.update(temperature=None, top_p=None, top_k=None)
    return settings, tuple(stop for stop in stops if stop)


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to where the first of `stops` begins."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
