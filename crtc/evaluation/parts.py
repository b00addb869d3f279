"""What an evaluation has finished, kept in files: an interrupted run goes on behind it."""

import hashlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crtc.methods.method import Method

_EQUATIONS = tuple(
    f"crtc.{room}"
    for room in (
        *("methods", "reinforcement", "graph", "greedy", "selection", "merging", "clustering", "ward", "sparse_ward"),
        *("relevance", "similarity", "batching", "evaluation.geometries"),
    )
)
"""Where code is that plans come from."""


class Parts:
    """Values by name, in a folder of their own for every setting; nothing is kept without a folder.

    Args:
        folder: of the results.
        setting: what all values depend on, ready for JSON.
    """

    def __init__(self, folder: Path | str | None, setting: Any):
        self._folder = None if folder is None else Path(folder) / f"parts-{digest(setting)}"
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether a value of that name is kept."""
        return self._folder is not None and self._file(self._folder, name).exists()

    def load(self, name: str) -> Any:
        """The value of that name, which must be there."""
        assert self._folder is not None
        return torch.load(self._file(self._folder, name), weights_only=False)

    def save(self, name: str, value: Any) -> None:
        """Keep a value, whole or not at all."""
        if self._folder is None:
            return
        file = self._file(self._folder, name)
        fresh = file.with_suffix(f".{os.getpid()}")  # others may work in the same folder
        torch.save(value, fresh)
        fresh.rename(file)

    @staticmethod
    def _file(folder: Path, name: str) -> Path:
        return folder / f"{name}.pt"


def digest(value: Any) -> str:
    """Digest of what JSON can tell."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def weights_digest(module: nn.Module) -> str:
    """Digest of all weights, bit by bit."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]


def method_digest(label: str, method: Method) -> str:
    """Digest of all that a method's results depend on beside the setting: settings, weights and code."""
    return digest([label, f"{method}", method.question_aware, weights_digest(method), _sources(method)])


def _sources(method: Method) -> dict[str, str]:
    """The code that a method's plans come from, by module: its own, that of its parts, and of what they are made of.

    Who changes any of it measures the method anew. Nothing of what cannot be read.
    """
    found: dict[str, str] = {}
    open_ends = [kind.__module__ for part in method.modules() for kind in type(part).__mro__]
    while open_ends:
        name = open_ends.pop()
        own = name == type(method).__module__ or name.startswith(_EQUATIONS)
        if name in found or name not in sys.modules or not own:
            continue
        try:
            found[name] = inspect.getsource(sys.modules[name])
        except (OSError, TypeError):
            continue
        for value in vars(sys.modules[name]).values():
            open_ends.append(value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) or "")
    return found
