"""A model for VLMEvalKit's registry `vlmeval.config.supported_VLM`; works alone too, where the kit is not installed."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from PIL import Image, UnidentifiedImageError

from crtc.plugins.chat import MAX_NEW_TOKENS, Dialogue, chat_of

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
        max_new_tokens: of an answer.
        options: everything else, as `crtc.plugins.chat.chat_of` takes it: `method`, `count`, ...

    Raises:
        ValueError: if an argument cannot be what it is, or the model cannot be loaded or compressed.
    """

    INTERLEAVE = True
    is_api = False

    def __init__(self, pretrained: str, *, max_new_tokens: int = MAX_NEW_TOKENS, **options: Any):
        super().__init__()
        self.max_new_tokens = max_new_tokens
        self.chat_model = chat_of(pretrained, **options)

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
