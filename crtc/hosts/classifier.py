"""Stock image classifiers that lose patch tokens between two layers, by hooks that are gone afterwards.

A stock forward pass notes the hidden states in front of the layers that are asked for. What a plan leaves of them goes
on through another stock forward pass: the layers before read a single token of zeros, which costs next to nothing, and
in front of its layer the shorter sequence takes their place. So norm, pooling and head are the model's own.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from crtc.hosts.attention import Attended, attended, attention_layers, biased
from crtc.hosts.embedded import whole
from crtc.tokens import IMAGE, Plan, SignalName, Signals, Tokens, apply

ADDITIVE = ("sdpa", "eager")
"""Attention that reads a bias of logits."""


@dataclass(frozen=True)
class Between:
    """The states in front of one layer.

    Args:
        leading: of the tokens that always stay, such as [CLS].
        tokens: the patches, one sequence and group per image.
    """

    leading: Float[Tensor, "B P D"]
    tokens: Tokens


class Classifier:
    """A stock vision transformer with a classification head.

    Args:
        model: of transformers, loaded.
        processor: of its images.
        preprocessing: how images become pixels, in words.

    Raises:
        ValueError: if it is no model whose layers read any number of patch tokens, in any order.
    """

    def __init__(self, model: Any, processor: Any, preprocessing: str):
        self.model, self.processor, self.preprocessing = model, processor, preprocessing
        self._name = type(model).__name__
        config = getattr(model.config, "vision_config", model.config)
        if config._attn_implementation not in ADDITIVE:
            raise ValueError(
                f"attention implementation is {config._attn_implementation!r}, expected one of {', '.join(ADDITIVE)}"
            )
        self._layers = attention_layers(model)
        self.depth = len(self._layers)
        if self.depth < 2 or self.depth != getattr(config, "num_hidden_layers", None):
            raise ValueError(f"{self._name} is not supported: expected a stack of plain attention layers, as of a ViT")
        (height, width), (high, wide) = _pair(config.image_size), _pair(config.patch_size)
        self.rows, self.columns = height // high, width // wide
        self._blank = torch.zeros(1, config.num_channels, height, width, dtype=model.dtype, device=model.device)
        self.leading, self.pools_patches = 0, False
        self._probe()

    @property
    def num_patches(self) -> int:
        """Patch tokens of every image."""
        return self.rows * self.columns

    @property
    def label2id(self) -> dict[str, int]:
        """Number of every class by its name."""
        return {str(name): int(number) for number, name in self.model.config.id2label.items()}

    @property
    def num_classes(self) -> int:
        """Classes that the head tells apart."""
        return int(self.model.config.num_labels)

    @property
    def signals(self) -> frozenset[SignalName]:
        """What a layer tells of its patch tokens."""
        everywhere: set[SignalName] = {"received_attention", "keys", "features"}
        return frozenset(everywhere | ({"cls_attention"} if self.leading else set()))

    def pixels(self, images: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
        """Images as the model reads them.

        Raises:
            ValueError: if the processor makes another size than the model's patches are of.
        """
        made: Tensor = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        if made.shape[1:] != self._blank.shape[1:]:
            raise ValueError(
                f"{type(self.processor).__name__} makes pixels of {tuple(made.shape[1:])}, "
                f"expected {tuple(self._blank.shape[1:])} as {self._name} reads them"
            )
        return made.to(self.model.device, self.model.dtype)

    @torch.no_grad()
    def read(
        self, pixels: Float[Tensor, "B 3 H W"], layers: Iterable[int], wanted: Iterable[SignalName] = ()
    ) -> tuple[Float[Tensor, "B classes"], dict[int, Between]]:
        """Logits with all tokens, and the states in front of some layers with signals of the layer before each.

        Args:
            pixels: as `pixels` makes them.
            layers: in front of which states are noted, from 1 on.
            wanted: names of signals.

        Raises:
            ValueError: if there is no such layer.
        """
        layers, names = list(layers), frozenset(wanted) & self.signals
        self.check_layers(layers)
        states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        calls: dict[int, list[dict[SignalName, Tensor]]] = {layer: [] for layer in layers}
        with ExitStack() as stack:
            for layer in layers:
                noting = _noting(states[layer])
                stack.callback(self._layers[layer][0].register_forward_pre_hook(noting, with_kwargs=True).remove)
                told = partial(_told, names=names, leading=self.leading)
                stack.enter_context(attended(self._layers[layer - 1][1], calls[layer], told))
            logits = self.model(pixel_values=pixels).logits
        return logits, {layer: self._between(states[layer][0], calls[layer][0], names) for layer in layers}

    @torch.no_grad()
    def shortened(self, layer: int, between: Between, plan: Plan, *, mass: bool) -> Float[Tensor, "B classes"]:
        """Logits with what a plan leaves in front of a layer.

        Args:
            layer: in front of which tokens leave.
            between: the states there.
            plan: of its tokens, with as many kept of every image.
            mass: whether later layers count a key column as often as it stands for tokens, and pooling does so too.

        Raises:
            ValueError: if the plan keeps more of one image than of another.
        """
        kept = plan.num_kept
        if bool((kept != kept[0]).any()):
            raise ValueError(f"the plan keeps {kept.tolist()} tokens, expected as many of every image")
        shape = (len(kept), int(kept[0]))
        size = plan.size.view(shape) if mass and bool((plan.size != 1).any()) else None
        return self.finish(layer, between.leading, apply(plan, between.tokens.x).view(*shape, -1), size)

    @torch.no_grad()
    def finish(
        self,
        layer: int,
        leading: Float[Tensor, "B P D"],
        patches: Float[Tensor, "B K D"],
        size: Float[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, "B classes"]:
        """Logits from states in front of a layer.

        Args:
            layer: the first that reads the states.
            leading: states of tokens such as [CLS], of size 1.
            patches: states of patch tokens, of any number.
            size: how many tokens each stands for, in whole numbers; 1 without.

        Raises:
            ValueError: if there is no such layer.
        """
        self.check_layers([layer])
        if size is not None and self.pools_patches:
            alike = _alike(size.sum(1))  # methods may leave tokens out, more of one image than of another
            if len(alike) > 1:
                apart = [self.finish(layer, leading[rows], patches[rows], size[rows]) for rows in alike]
                return torch.cat(apart)[torch.cat(alike).argsort()]
        states = torch.cat([leading, patches], 1)
        with ExitStack() as stack:
            for place, given in ((0, states.new_zeros(1, 1, states.shape[-1])), (layer, states)):
                hook = self._layers[place][0].register_forward_pre_hook(_replacing(given), with_kwargs=True)
                stack.callback(hook.remove)
            if size is not None:
                bias = torch.cat([size.new_zeros(leading.shape[:2]), size.log()], 1)
                stack.enter_context(biased([attention for _, attention in self._layers[layer:]], bias))
                if self.pools_patches:
                    hook = self._layers[-1][0].register_forward_hook(_repeating(leading.shape[1], size.long()))
                    stack.callback(hook.remove)
            logits: Tensor = self.model(pixel_values=self._blank).logits
        return logits

    def check_layers(self, layers: Sequence[int]) -> None:
        """Raise `ValueError` unless tokens can leave in front of every one of the layers."""
        for layer in layers:
            if not 1 <= layer < self.depth:
                raise ValueError(f"layer is {layer}, expected 1 to {self.depth - 1}, in front of which tokens leave")

    def _between(
        self, states: Float[Tensor, "B S D"], told: dict[SignalName, Tensor], names: frozenset[SignalName]
    ) -> Between:
        images, num = len(states), self.num_patches
        x = states[:, self.leading :].flatten(0, 1)
        group = torch.arange(images, device=x.device).repeat_interleave(num)
        cells = torch.cartesian_prod(torch.arange(1), torch.arange(self.rows), torch.arange(self.columns))
        signals = {name: value.flatten(0, 1) for name, value in told.items()}
        if "features" in names:
            signals["features"] = x
        tokens = Tokens(
            x, torch.full_like(group, IMAGE), group, group, cells.repeat(images, 1).to(x.device), Signals(**signals)
        )
        return Between(states[:, : self.leading], tokens)

    @torch.no_grad()
    def _probe(self) -> None:
        """Count the leading tokens, and see what no configuration tells: that later layers read any number of patch
        tokens, in any order, and that a token of size 2 does what two of it do, which is false of relative positions.
        """
        random = torch.Generator().manual_seed(0)
        pixels = torch.randn(self._blank.shape, generator=random).to(self._blank)
        try:
            states: list[Tensor] = []
            with ExitStack() as stack:
                hook = self._layers[1][0].register_forward_pre_hook(_noting(states), with_kwargs=True)
                stack.callback(hook.remove)
                self.model(pixel_values=pixels)
            self.leading = states[0].shape[1] - self.num_patches
            if self.leading < 0:
                raise ValueError(f"its layers read {states[0].shape[1]} tokens of {self.num_patches} patches")
            leading, patches = states[0][:, : self.leading], states[0][:, self.leading :]
            plain = self.finish(1, leading, patches)
            with ExitStack() as stack:
                stack.callback(self._layers[-1][0].register_forward_hook(_blanking(self.leading)).remove)
                self.pools_patches = not torch.equal(self.finish(1, leading, patches), plain)
            size = 1 + (torch.arange(self.num_patches, device=plain.device) % 2).float()[None]
            twice = torch.cat([patches, patches[:, size[0] > 1]], 1)
            order = torch.randperm(twice.shape[1], generator=random).to(plain.device)
            expected = self.finish(1, leading, twice[:, order])
            found = self.finish(1, leading, patches, size)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{self._name} is not supported, its tokens cannot leave between layers: {error}"
            ) from error
        effect, gap = (float((one - expected).abs().max()) for one in (plain, found))
        if not gap <= 0.01 * effect + 1e-5 * float(expected.abs().max()):
            raise ValueError(
                f"{self._name} is not supported: two tokens alike do not do what one of size 2 does (logits differ by "
                f"{gap:.2g}), expected layers that read patch tokens without regard to their places"
            )


def load_classifier(
    name: str | Path, *, device: str | torch.device = "cpu", attention: Literal["sdpa", "eager"] = "sdpa"
) -> Classifier:
    """A classifier in float32 with its image processor, from a folder or the Hugging Face hub.

    Without a configuration of a processor, images are resized to the model's size and scaled to [-1, 1].

    Args:
        name: a folder, or an id of the hub.
        device: of the weights; "auto" is the GPU if there is one.
        attention: implementation of attention.

    Raises:
        ValueError: if it cannot be loaded whole, the device cannot be used, or its tokens cannot leave between layers.
    """
    try:
        loaded: Any = AutoModelForImageClassification.from_pretrained(
            name, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
        )
        if get_image_processor_config(name):
            processor: Any = AutoImageProcessor.from_pretrained(name, backend="pil")  # type: ignore[no-untyped-call]
            preprocessing = f"{type(processor).__name__} of the model"
        else:
            processor, preprocessing = _plain_processor(loaded[0].config)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"model {str(name)!r} cannot be loaded as an image classifier: {error}") from error
    return Classifier(whole(f"model {str(name)!r}", "image classifier", loaded, device), processor, preprocessing)


def _plain_processor(config: Any) -> tuple[Any, str]:
    height, width = _pair(getattr(config, "vision_config", config).image_size)
    processor = ViTImageProcessorPil(
        size={"height": height, "width": width},
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return processor, f"none given by the model: resized to {height} x {width} (bicubic), mean = std = 0.5"


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, Iterable):
        height, width = size
        return int(height), int(width)
    return int(size), int(size)


def _told(call: Attended, *, names: frozenset[SignalName], leading: int) -> dict[SignalName, Float[Tensor, "B N *d"]]:
    """Signals of the patch tokens in one call of attention."""
    made: dict[SignalName, Callable[[], Tensor]] = {
        "cls_attention": lambda: call.weights(0, 1)[:, 0],
        "received_attention": call.received,
        "keys": lambda: call.keys.mean(1),
    }
    return {name: make()[:, leading:] for name, make in made.items() if name in names}


def _noting(states: list[Tensor]) -> Any:
    """A hook that notes the hidden states which a layer gets."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    return hook


def _replacing(states: Tensor) -> Any:
    """A hook that gives a layer other hidden states."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    return hook


def _after(change: Callable[[Tensor], Tensor]) -> Any:
    """A hook that changes the hidden states which a layer puts out."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


def _repeating(leading: int, size: Int[Tensor, "B K"]) -> Any:
    """A hook that puts out every patch token as often as it stands for tokens, so that pooling counts it so."""

    def repeated(states: Tensor) -> Tensor:
        rows = states[:, leading:].flatten(0, 1).repeat_interleave(size.flatten(), 0)
        return torch.cat([states[:, :leading], rows.view(len(states), -1, states.shape[-1])], 1)

    return _after(repeated)


def _blanking(leading: int) -> Any:
    """A hook that takes the content from the patch tokens."""
    return _after(lambda states: torch.cat([states[:, :leading], torch.zeros_like(states[:, leading:])], 1))


def _alike(total: Float[Tensor, " B"]) -> list[Int[Tensor, " b"]]:
    """Rows by their value."""
    return [(total == value).nonzero()[:, 0] for value in sorted(set(total.tolist()))]
