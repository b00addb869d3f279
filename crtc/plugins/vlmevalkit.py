"""A model for VLMEvalKit's registry `vlmeval.config.supported_VLM`; works alone too, where the kit is not installed."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from PIL import Image, UnidentifiedImageError

from crtc.hosts import Positions
from crtc.plugins.chat import MAX_NEW_TOKENS, Chat, Dialogue
from crtc.plugins.recipe import Recipe, chosen

try:
    from vlmeval.vlm.base import BaseModel
except ModuleNotFoundError as error:
    if error.name != "vlmeval":
        raise  # the kit is there, but not whole
    BaseModel = object


class Crtc(BaseModel):  # type: ignore[misc]
    """An image-text model of the Hugging Face hub, its images compressed.

    Args:
        pretrained: "embedded", a folder, or an id of the Hugging Face hub.
        method: name of the catalogue.
        scorer: folder of a trained scorer in the place of a method.
        keep: fraction of every image's tokens to keep; 1 is the model as it is.
        count: whole tokens of every image to keep.
        mass: whether merged tokens draw as much attention as those they stand for.
        positions: `"repack"` or `"keep"`; what the model's family does without.
        dtype: of the model.
        device: of the model; a GPU if there is one, without.
        attention: implementation of attention.
        max_new_tokens: of an answer.
        settings: everything else is what the method takes to be made.

    Raises:
        ValueError: if an argument cannot be what it is, or the model cannot be loaded or compressed.
    """

    INTERLEAVE = True
    is_api = False

    def __init__(
        self,
        pretrained: str,
        *,
        method: str | None = None,
        scorer: str | None = None,
        keep: float | None = None,
        count: int | None = None,
        mass: bool = True,
        positions: Positions | None = None,
        dtype: str = "bfloat16",
        device: str | None = None,
        attention: str = "sdpa",
        max_new_tokens: int = MAX_NEW_TOKENS,
        **settings: Any,
    ):
        super().__init__()
        recipe = Recipe(chosen(method, scorer, **settings), keep, count, mass, positions)
        self.max_new_tokens = max_new_tokens
        self.chat_model = Chat(pretrained, recipe, dtype=dtype, device=device, attention=attention)

    def generate_inner(self, message: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """The answer to one message of the kit, whatever the data set.

        Raises:
            ValueError: if it holds anything but text and images, or an image cannot be read.
        """
        return self.chat_model.answer([as_dialogue(message)], {"max_new_tokens": self.max_new_tokens})[0]


def as_dialogue(message: Sequence[dict[str, Any]]) -> Dialogue:
    """The kit's flat list of `type`, `value` and perhaps `role` as messages of a chat template.

    Raises:
        ValueError: if a part is neither text nor image, or an image cannot be read.
    """
    turns = groupby(message, key=lambda part: part.get("role", "user"))
    return [{"role": role, "content": [_part(part) for part in parts]} for role, parts in turns]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind, value = part["type"], part["value"]
    if kind == "text":
        return {"type": "text", "text": value}
    if kind != "image":
        raise ValueError(f"a message holds {kind!r}, expected text and images")
    try:
        return {"type": "image", "image": Image.open(value).convert("RGB")}
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"image {value!r} cannot be read: {error}") from error
