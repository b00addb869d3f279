"""What learned methods share: importance that training reads, and weights in a folder that says whose they are."""

import inspect
import json
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crtc.graph.neighbors import Neighbors
from crtc.merging import give_mass
from crtc.methods.method import ScoreMethod, keep_all
from crtc.selection import top_k
from crtc.tokens import Groups, Plan, Tokens

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Importance:
    """What a scorer says of every candidate, groups side by side.

    Args:
        groups: which token stands where.
        logit: log importance, differentiable.
    """

    groups: Groups
    logit: Float[Tensor, "G M"]

    def repeat(self, groups: Groups, rows: Int[Tensor, " R"]) -> "Importance":
        """The same for `groups` that hold the tokens of these rows again."""
        return Importance(groups, self.logit[rows])


class Learned(ScoreMethod):
    """A method with weights, trained through a frozen host by `crtc.training.scorer`.

    A subclass says `importance`; the most important tokens stay unless it plans otherwise in `plan_from`. What its
    constructor takes is what its folder records, by the names of its attributes.
    """

    family = "learned"
    ways: ClassVar[tuple[bool, ...]] = (False,)
    """Whether it works with the question, without, or both, first the way in which it works by itself."""
    clusters: ClassVar[bool] = False
    """Whether tokens are assigned in a learned metric, which training by assignment needs."""
    unready = "no weights ship for it, `crtc fit` trains them"

    def __init__(self, width: int, **design: Any):
        super().__init__()

    @classmethod
    def for_width(cls, width: int) -> Self:
        """An untrained scorer."""
        return cls(width)

    @classmethod
    def ready(cls, **kwargs: Any) -> Self:
        """The method with the weights that ship.

        Raises:
            ValueError: if none ship.
        """
        raise ValueError(f"{cls.__name__} is not ready for use: {cls.unready}")

    @abstractmethod
    def importance(self, tokens: Tokens, neighbors: Neighbors | None = None) -> Importance:
        """Run the network; `neighbors` saves finding them again.

        Raises:
            ValueError: if the tokens have another width than the method was made for.
        """

    def neighbors(self, tokens: Tokens) -> Neighbors | None:
        """The edges that the network runs on, as far as they do not depend on the question; None without any."""
        return None

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Log importance of every token, 0 for context."""
        said = self.importance(tokens)
        inside = said.groups.valid
        return said.logit.new_zeros(len(tokens)).index_put((said.groups.index[inside],), said.logit[inside])

    def planner(self, tokens: Tokens) -> Callable[[Int[Tensor, " G"]], Plan]:
        """Plans at any counts, for which the network runs once."""
        said = self.importance(tokens)
        self.settle(said)

        def plan(k: Int[Tensor, " G"]) -> Plan:
            self.check(tokens, k)
            return keep_all(tokens) if bool((k == tokens.group_sizes).all()) else self.plan_from(said, tokens, k)

        return plan

    def settle(self, said: Any) -> None:
        """Compute what plans of all counts read from an importance, and what it keeps for them."""

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """The plan that the importance of the tokens leads to."""
        return self.plan_from(self.importance(tokens), tokens, k)

    def plan_from(self, said: Any, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """The plan that an importance leads to."""
        return give_mass(tokens, said.groups, top_k(said.logit.detach(), said.groups.valid, k))

    def made_of(self) -> dict[str, Any]:
        """What the constructor needs to make the same network."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def check_width(self, tokens: Tokens, width: int) -> None:
        """Raise `ValueError` unless the tokens have `width` channels."""
        if tokens.x.shape[1] != width:
            raise ValueError(
                f"tokens have {tokens.x.shape[1]} channels, this scorer was trained on a host with {width}"
            )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json`, which names the method, and `model.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"method": type(self).__name__, "design": self.made_of()}
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / _WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: Path | str, **settings: Any) -> Self:
        """Read what `save_pretrained` wrote.

        Args:
            folder: of the files.
            settings: of the constructor that are no part of the network.

        Raises:
            ValueError: if a file is missing or damaged, is of another method, or the weights do not fit the design.
        """
        folder = Path(folder)
        name = method_in(folder)
        if name != cls.__name__:
            raise ValueError(f"{folder} holds a {name}, expected a {cls.__name__}")
        try:
            scorer = cls(**settings, **json.loads((folder / _CONFIG).read_text())["design"])
            scorer.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, KeyError, TypeError, ValueError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"{folder} holds no readable scorer: {error}") from error
        return scorer.eval()


def method_in(folder: Path | str) -> str:
    """Class name of the learned method whose weights a folder holds; `Reinforced` where none is named, as in the
    folders from the time when it was the only one.

    Raises:
        ValueError: if the folder cannot be read.
    """
    try:
        return str(json.loads((Path(folder) / _CONFIG).read_text()).get("method", "Reinforced"))
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} holds no readable scorer: {error}") from error
