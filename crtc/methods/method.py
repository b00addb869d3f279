"""The contract of every compression method: tokens and counts in, a plan out."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crtc import counts
from crtc.merging import give_mass
from crtc.selection import top_k
from crtc.tokens import Groups, Plan, SignalName, Tokens
from crtc.tokens import keep_all as keep_all

Need = SignalName | Literal["text", "grid"]
Family = Literal["control", "saliency", "merging", "diversity", "clustering", "graph", "learned"]


def in_full(tokens: Tokens) -> torch.autocast:
    """A context without autocast, which would round the likeness of tokens before it is compared."""
    return torch.autocast(tokens.x.device.type, enabled=False)


class Method(nn.Module, ABC):
    """Chooses which tokens stay and what becomes of the rest; never touches a host.

    A subclass implements `plan` and declares what it needs. Runners read the declarations; none asks for a class.
    """

    source: ClassVar[str] = ""
    """Where the method is from: paper, or what it is in one line."""
    licence: ClassVar[str] = "-"
    """Licence of the code it comes from or was compared with: "none given" if that has none, "-" without such code."""
    place: ClassVar[str] = "after the projector"
    """Where the published method acts; here all without `cuts` act after the projector, before the language model."""
    family: ClassVar[Family]
    needs: frozenset[Need] = frozenset()
    """Signals and kinds of tokens without which the method cannot work; settings of an instance may change them."""
    question_aware: bool = False
    """Whether the text tokens change the plan."""
    reads_own_layer: ClassVar[bool] = False
    """Whether it reads queries and keys of the layer in front of which it plans, not of the layer before."""
    uses_order: bool = False
    """Whether the order of the tokens changes the plan beyond ties."""

    @abstractmethod
    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep exactly `k[g]` tokens of every group.

        Raises:
            ValueError: if a group cannot give `k[g]` tokens, or a needed signal is missing.
        """

    def planner(self, tokens: Tokens) -> Callable[[Int[Tensor, " G"]], Plan]:
        """Plans of the same tokens at any counts; a method that can do so computes once what these share."""
        return partial(self, tokens)

    def first_plan(self, tokens: Tokens) -> Plan | None:
        """A coarse plan that the language model is to look at before this method plans; its attention then comes as
        the signal `question_attention`. None where no look is needed; a method with one is question-aware.
        """
        return None

    def forward(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Check the request, then plan."""
        self.check(tokens, k)
        if bool((k == tokens.group_sizes).all()):
            return keep_all(tokens)
        with in_full(tokens):
            return self.plan(tokens, k)

    def check(self, tokens: Tokens, k: Int[Tensor, " G"]) -> None:
        """Raise `ValueError` if a group cannot give `k[g]` tokens, or a needed signal is missing."""
        counts.check(k, tokens.group_sizes)
        missing = self.missing(tokens)
        if missing:
            raise ValueError(f"{type(self).__name__} needs {', '.join(sorted(missing))}, which these tokens lack")

    def cuts(self, depth: int) -> tuple[int, ...]:
        """Layers of a language model of that depth in front of which the method plans; none if before all of them."""
        return ()

    def cut_counts(self, k: Int[Tensor, " G"], sizes: Int[Tensor, " G"], depth: int) -> Int[Tensor, "S G"]:
        """How many tokens of every group are left behind each of the cuts, where `k[g]` are asked for."""
        return k[None]

    @classmethod
    def ready(cls, **kwargs: Any) -> Self:
        """The method as users get it by name; a learned one with the weights that ship with the package."""
        return cls(**kwargs)

    @classmethod
    def for_width(cls, width: int) -> Self:
        """The method for tokens of `width` channels; a learned one untrained."""
        return cls()

    @classmethod
    def deviations(cls) -> str:
        """What the docstring says is unlike the published method, on one line; nothing if it says none."""
        found = re.search(r"\bDeviations?\b[^:]*:\s+(.+?)(?:\n\n|\Z)", inspect.getdoc(cls) or "", flags=re.DOTALL)
        return " ".join(found[1].split()) if found else ""

    def missing(self, tokens: Tokens) -> frozenset[str]:
        """Which needs the tokens do not meet."""
        there: set[str] = set(tokens.signals.present)
        if not bool(tokens.candidates.all()):
            there.add("text")
        if bool((tokens.grid[tokens.candidates] >= 0).all()):
            there.add("grid")
        return frozenset(self.needs - there)

    def extra_repr(self) -> str:
        """What the constructor was given."""
        given = {name: getattr(self, name, self) for name in inspect.signature(type(self)).parameters}
        return ", ".join(f"{name}={value!r}" for name, value in given.items() if not isinstance(value, nn.Module))


class ScoreMethod(Method):
    """A method that is a score: the highest of every group stay.

    Each of the rest gives its mass to the kept token most like it.
    """

    @abstractmethod
    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Importance of every token, higher is better; values of context tokens are ignored."""

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep the `k[g]` highest scores of every group, the earlier token where scores are equal."""
        groups = Groups.of(tokens)
        kept = top_k(groups.gather(self.score(tokens).float()), groups.valid, k)
        return give_mass(tokens, groups, kept)


def name_of(method: type[Method]) -> str:
    """A method's name: that of its class in lower case, with underscores between words.

    Pieces of one or two letters belong to their neighbour (`ClsAttention` is cls_attention, `KMeans` kmeans).
    """
    return re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})", "_", method.__name__).lower()
