"""Visual rows of one modality: what a model's own feature function gave, read as one flat list and written back."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crtc.hosts.family import Modality, projected, rows_field
from crtc.tokens import Plan, apply

PIXELS = ("pixel_values", "image_patches")  # family: Fuyu
"""What feature functions call pixels, and what a processor may."""


@dataclass(frozen=True)
class Visual:
    """Rows of all images, or of all clips, in the order of their placeholders.

    Args:
        modality: `"image"` or `"video"`.
        output: what the feature function gave; its container types and extra fields are kept.
        source: for every placeholder its row among those of the output.
        place: for every placeholder its token number.
    """

    modality: Modality
    output: Any
    source: Int[Tensor, " P"]
    place: Int[Tensor, " P"]

    @property
    def in_space(self) -> bool:
        """Whether the rows are in the space of the language model's embeddings, not projected later or deeper."""
        return rows_field(self.output) == "pooler_output"

    def shortened(self, plan: Plan, content: Float[Tensor, "K D"], sequence: Int[Tensor, " N"]) -> Any:
        """The output with the rows of the kept tokens, every field that has a row per token by the same plan.

        Args:
            plan: of all tokens.
            content: of the slots; where rows are not in the space of the embeddings, their own is taken.
            sequence: prompt of every token.
        """
        kept = torch.isin(plan.kept, self.place)
        counts = torch.bincount(sequence[plan.kept[kept]])
        sizes = counts[counts > 0].tolist()
        field = rows_field(self.output)
        new = copy.copy(self.output)
        for name in ("hidden_states", "attentions", "last_hidden_state"):
            if name in new and name != field:
                _put(new, name, None)
        if field is not None:
            before = getattr(self.output, field)
            rows = content if self.in_space else self._applied(plan, before)
            _put(new, field, _as_before(before, rows[kept], sizes))
        deep = getattr(self.output, "deepstack_features", None)
        if deep is not None:
            layers = [
                (layer[0], _as_before(layer[1], self._applied(plan, layer[1])[kept], sizes))  # family: Granite4-Vision
                if _numbered(layer)
                else _as_before(layer, self._applied(plan, layer)[kept], sizes)
                for layer in deep
            ]
            _put(new, "deepstack_features", layers)
        return new

    def _applied(self, plan: Plan, container: Any) -> Float[Tensor, "K D"]:
        rows = flat(container).to(self.source.device)[self.source]
        full = rows.new_zeros(len(plan.slot), rows.shape[1]).index_put((self.place,), rows)
        return apply(plan, full)


def named(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by the names that feature functions have for them."""
    return {PIXELS[0] if name in PIXELS else name: value for name, value in inputs.items()}


def arguments(model: Any, modality: Modality, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the model's feature function among some inputs."""
    names = inspect.signature(getattr(model.base_model, f"get_{modality}_features")).parameters
    return {name: inputs[name] for name in names if name != "kwargs" and inputs.get(name) is not None}


def has_pixels(given: Mapping[str, Any]) -> bool:
    """Whether there is anything to encode among the arguments.

    Raises:
        ValueError: if pixels are not finite.
    """
    pixels = {name: value for name, value in given.items() if name.startswith(PIXELS[0]) and len(value)}
    for name, value in pixels.items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds NaN or infinity, expected finite pixels")
    return bool(pixels)


def units(output: Any) -> list[Float[Tensor, "L D"]]:
    """Rows as the family groups them: by image, tile, clip, or prompt."""
    field = rows_field(output)
    container = output.deepstack_features[0][1] if field is None else getattr(output, field)
    if isinstance(container, Tensor) and container.ndim == 2:
        return [container]
    return [unit.reshape(-1, unit.shape[-1]) for unit in container]


def readable(model: Any, output: Any) -> Float[Tensor, "R D"]:
    """All rows in the space of the language model's embeddings, as a method is to see them."""
    return projected(model, torch.cat(units(output)), rows_field(output))


def flat(container: Any) -> Float[Tensor, "R D"]:
    """All rows of a tensor or of a list of tensors."""
    parts = [container] if isinstance(container, Tensor) else list(container)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _numbered(layer: Any) -> bool:
    return not isinstance(layer, Tensor) and isinstance(layer[0], int)  # family: Granite4-Vision


def _as_before(container: Any, rows: Float[Tensor, "K D"], sizes: Sequence[int]) -> Any:
    """Rows in the kind of container that the model expects, in parts that `generate` can repeat for beams: lists by
    prompt, since it repeats part after part; one row each where images are stacked, so that ragged numbers fit.
    """
    if isinstance(container, Tensor):
        return rows if container.ndim == 2 else rows[:, None]
    return list(torch.split(rows, list(sizes)))


def _put(output: Any, name: str, value: Any) -> None:
    setattr(output, name, value)
    if name in output:
        output[name] = value
