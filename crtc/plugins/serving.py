"""How a served image is compressed, apart from vLLM: what a method is told, and what it leaves."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crtc import counts
from crtc.hosts.attention import Attended
from crtc.hosts.grid import frame
from crtc.hosts.signals import shallow_layer
from crtc.methods import Method
from crtc.plugins.recipe import chosen
from crtc.tokens import IMAGE, SIGNALS, SignalName, Signals, Tokens, apply

FIELDS = ("method", "scorer", "settings", "keep", "count")
_DEPTH = 32
"""Layers of a language model; a method that acts inside one says so for any depth."""


@dataclass(frozen=True)
class Serving:
    """How images are compressed while they are served.

    Args:
        method: that does not look at the question.
        keep: fraction of every image's tokens to keep.
        count: whole tokens of every image to keep.

    Raises:
        ValueError: if the method looks at the question or acts inside the language model, or not exactly one of `keep`
            and `count` is given.
    """

    method: Method
    keep: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.method.cuts(_DEPTH):
            raise ValueError(f"{type(self.method).__name__} acts inside the language model, which vLLM runs as a whole")
        if self.method.question_aware:
            raise ValueError(
                f"{type(self.method).__name__} looks at the question, but vLLM encodes images without their prompts; "
                'expected another method, or "settings": {"question": false} where a method has them'
            )
        for name, amount in (("keep", self.keep), ("count", self.count)):
            if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int | float)):
                raise ValueError(f"{name} is {amount!r}, expected a number")
        counts.resolve(torch.empty(0, dtype=torch.long), keep=self.keep, count=self.count)

    @classmethod
    def of(cls, config: Any) -> "Serving":
        """What `crtc` in a model's configuration says.

        That is `method`, a name of the catalogue, or `scorer`, a folder that `crtc fit` wrote, the untrained method
        without either; `settings` with which it is made, if any; and `keep` or `count`.

        Raises:
            ValueError: if `crtc` is not there or holds something else, there is no such method, it cannot be made with
                these settings, or the method and amount cannot be served.
        """
        given = getattr(config, "crtc", None)
        if not isinstance(given, Mapping):
            raise ValueError(f'crtc is {given!r}, expected hf_overrides with "crtc": {{"method": ..., "count": ...}}')
        if set(given) - set(FIELDS):
            raise ValueError(f"crtc holds {sorted(set(given) - set(FIELDS))}, expected some of {', '.join(FIELDS)}")
        settings = given.get("settings", {})
        if not isinstance(settings, Mapping):
            raise ValueError(f"settings is {settings!r}, expected names and values")
        method = chosen(given.get("method"), given.get("scorer"), **settings)
        return cls(method.eval(), given.get("keep"), given.get("count"))

    @property
    def signals(self) -> list[SignalName]:
        """What the method needs to be told by the vision tower."""
        return [name for name in SIGNALS if name in self.method.needs]

    def num_kept(self, num: int) -> int:
        """Tokens that stay of an image of `num`.

        Raises:
            ValueError: if it has fewer than `count`.
        """
        return int(counts.resolve(torch.tensor([num]), keep=self.keep, count=self.count))

    @torch.no_grad()
    def shortened(self, rows: Float[Tensor, "I P D"], signals: Signals) -> Float[Tensor, "I K D"]:
        """The rows of square images that the language model is to read.

        Args:
            rows: of every image, row by row, as the projector gives them.
            signals: of the same rows, flat.

        Raises:
            ValueError: if an image has fewer rows than `count`, or signals are missing.
        """
        images, num, width = rows.shape
        image = torch.arange(images, device=rows.device).repeat_interleave(num)
        grid = frame(num, (1, 1)).repeat(images, 1).to(rows.device)
        tokens = Tokens(rows.flatten(0, 1), torch.full_like(image, IMAGE), image, image, grid, signals)
        kept = self.num_kept(num)
        plan = self.method.to(rows.device)(tokens, torch.full((images,), kept, device=rows.device))
        return apply(plan, tokens.x).view(images, kept, width)


@dataclass
class Seen:
    """What passed by while images were encoded.

    Args:
        features: what the projector read.
        last: attention of the layer before the projector.
        shallow: attention of the layer three eighths up the tower.
        has_cls: whether a [CLS] token comes first.
    """

    features: list[Float[Tensor, "I P C"]] = field(default_factory=list)
    last: list[Attended] = field(default_factory=list)
    shallow: list[Attended] = field(default_factory=list)
    has_cls: bool = False

    def signals(self) -> Signals:
        """The signals of the projector's rows, flat; those for which nothing was noted stay absent."""
        bag: dict[SignalName, Tensor] = {}
        num = self.features[0].shape[1] if self.features else 0

        def flat(of_patches: Tensor) -> Tensor:
            return of_patches[:, -num:].flatten(0, 1)  # the projector does not read a leading [CLS]

        if self.features:
            bag["features"] = flat(self.features[0])
        for call in self.last:
            bag["keys"] = flat(call.keys.mean(1))
            bag["received_attention"] = flat(call.received())
            if self.has_cls:
                bag["cls_attention"] = flat(call.weights(0, 1)[:, 0])
        for call in self.shallow:
            bag["shallow_attention"] = flat(call.received())
        return Signals(**bag)


@contextmanager
def watched(tower: nn.Module, projector: nn.Module, *, heads: int, depth: int) -> Iterator[Seen]:
    """While the context lasts, note what vLLM's vision tower tells beside its features.

    Args:
        tower: of CLIP or SigLIP, up to the layer that the projector reads.
        projector: called with the features.
        heads: of an attention layer.
        depth: attention layers of the whole tower.

    Raises:
        ValueError: if heads are shared out among devices, which would then keep different tokens.
    """
    layers = [part for name, part in tower.named_modules() if name.endswith("self_attn.attn")]
    if any(layer.num_heads != heads for layer in layers):
        raise ValueError(
            f"each device has {layers[0].num_heads} of {heads} heads of the vision tower, but the method needs all; "
            'expected mm_encoder_tp_mode="data" or a method without attention'
        )
    seen = Seen(has_cls=any(name.endswith("class_embedding") for name, _ in tower.named_parameters()))
    with ExitStack() as stack:
        stack.callback(projector.register_forward_pre_hook(lambda _, given: seen.features.append(given[0])).remove)
        stack.callback(layers[-1].register_forward_pre_hook(_noting(seen.last)).remove)
        shallow = shallow_layer(depth)
        if shallow < len(layers):
            stack.callback(layers[shallow].register_forward_pre_hook(_noting(seen.shallow)).remove)
        yield seen


def _noting(calls: list[Attended]) -> Callable[[Any, tuple[Tensor, ...]], None]:
    def hook(layer: Any, given: tuple[Tensor, ...]) -> None:
        queries, keys = (part.view(*part.shape[:2], layer.num_heads, -1).transpose(1, 2) for part in given[:2])
        calls.append(Attended(queries, keys, layer.scale, None))

    return hook
