"""What learned methods share: importance that training reads, and weights in a folder that says whose they are."""

import inspect
import json
import tempfile
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crtc.graph.neighbors import Neighbors
from crtc.merging import give_mass
from crtc.methods.card import card
from crtc.methods.method import ScoreMethod, in_full, keep_all, name_of
from crtc.methods.origin import Origin
from crtc.methods.sharing import local_folder, push
from crtc.selection import top_k
from crtc.tokens import Groups, Plan, Tokens

_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
FILES = [_CONFIG, _WEIGHTS]
"""What makes a scorer, in a folder or on the hub."""
SHIPPED = Path(__file__).parent / "glyphs"
"""Weights for the embedded host, a folder of the method's name for each."""
UNREADY = "no weights ship for it, `crtc fit` trains them"


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
    origin: Origin | None = None
    """Where the weights come from, if that is known; training and reading set it, saving writes it."""

    def __init__(self, width: int, **design: Any):
        super().__init__()

    @classmethod
    def for_width(cls, width: int) -> Self:
        """An untrained scorer."""
        return cls(width)

    @classmethod
    def ready(cls, **kwargs: Any) -> Self:
        """The method with the weights that ship, for the embedded host.

        Raises:
            ValueError: if none ship.
        """
        if not cls.shipped().is_dir():
            raise ValueError(f"{cls.__name__} is not ready for use: {UNREADY}")
        return cls.from_pretrained(cls.shipped(), **kwargs)

    @classmethod
    def shipped(cls) -> Path:
        """The folder of the weights that ship, whether there are any or not."""
        return SHIPPED / name_of(cls)

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
        with in_full(tokens):
            said = self.importance(tokens)
            self.settle(said)

        def plan(k: Int[Tensor, " G"]) -> Plan:
            self.check(tokens, k)
            with in_full(tokens):
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
            of = f", {self.origin.host}" if self.origin else ""
            raise ValueError(
                f"tokens have {tokens.x.shape[1]} channels, this scorer was trained on a host with {width}{of}"
            )

    def save_pretrained(self, folder: Path | str, *, name: str | None = None) -> None:
        """Write `config.json`, which names the method, `model.safetensors`, and a model card `README.md`.

        Args:
            folder: to write into.
            name: under which the card tells readers to find it; the folder's without.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        design = self.made_of()
        config = {"method": type(self).__name__, "design": design}
        if self.origin is not None:
            config["origin"] = asdict(self.origin)
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (folder / _CARD).write_text(card(type(self), design["width"], design, self.origin, name or folder.name))
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / _WEIGHTS)

    def push_to_hub(self, repo: str, *, private: bool = False, message: str = "Scorer of visual tokens") -> str:
        """Upload what `save_pretrained` writes, with the account that `hf auth login` or HF_TOKEN names.

        Args:
            repo: hub id, such as "owner/name"; made where there is none.
            private: whether a repository that is made is shown to its owner alone.
            message: of the commit.

        Returns:
            Address of the commit.

        Raises:
            ValueError: if `repo` is no hub id.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo)
            return push(Path(folder), repo, private=private, message=message)

    @classmethod
    def from_pretrained(cls, source: Path | str, *, revision: str | None = None, **settings: Any) -> Self:
        """Read what `save_pretrained` or `push_to_hub` wrote.

        Args:
            source: the folder, or a hub id where there is no such folder.
            revision: branch, tag or commit on the hub.
            settings: of the constructor that are no part of the network.

        Raises:
            ValueError: if a file is missing or damaged, is of another method, the weights do not fit the design, or the
                hub does not give them.
        """
        folder = local_folder(source, FILES, revision)
        name = method_in(folder)
        if name != cls.__name__:
            raise ValueError(f"{source} holds a {name}, expected a {cls.__name__}")
        try:
            config = json.loads((folder / _CONFIG).read_text())
            scorer = cls(**settings, **config["design"])
            scorer.origin = Origin(**config["origin"]) if "origin" in config else None
            scorer.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, KeyError, TypeError, ValueError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"{source} holds no readable scorer: {error}") from error
        return scorer.eval()


def method_in(folder: Path | str) -> str:
    """Class name of the learned method whose weights a folder holds; `ReinforcedScorer` where none is named, or by its
    former name, as in folders from the time when it was the only one.

    Raises:
        ValueError: if the folder cannot be read.
    """
    try:
        name = str(json.loads((Path(folder) / _CONFIG).read_text()).get("method", "Reinforced"))
        return "ReinforcedScorer" if name == "Reinforced" else name
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} holds no readable scorer: {error}") from error
