"""Methods by name, found from what the package exports."""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from crtc.methods.method import Method

GOLDEN = Path(__file__).parents[2] / "tests" / "methods" / "golden"


def catalogue() -> dict[str, type[Method]]:
    """Every method that can be made, by name, in alphabetical order.

    The name is the class name in lower case with underscores between words; pieces of one or two letters belong to
    their neighbour (`ClsAttention` is cls_attention, `KMeans` kmeans).
    """
    exports = vars(importlib.import_module("crtc.methods")).values()
    found = {
        _name(entry): entry
        for entry in exports
        if inspect.isclass(entry) and issubclass(entry, Method) and not inspect.isabstract(entry)
    }
    return dict(sorted(found.items()))


def get_method(name: str, **settings: Any) -> Method:
    """The method of that name, ready for use; case, hyphens and underscores do not matter.

    Args:
        name: as in the catalogue.
        settings: what the method takes to be made.

    Raises:
        ValueError: if no method has that name.
    """
    methods = catalogue()
    known = {_plain(key): entry for key, entry in methods.items()}
    if _plain(name) not in known:
        raise ValueError(f"no method is named {name!r}, expected one of {', '.join(methods)}")
    return known[_plain(name)].ready(**settings)


def golden() -> frozenset[str] | None:
    """Names of the methods that tests compare with numbers of their authors' code; None where the tests are not."""
    if not GOLDEN.is_dir():
        return None
    given = {_plain(json.loads(file.read_text())["method"]) for file in GOLDEN.glob("*.json")}
    return frozenset(name for name in catalogue() if _plain(name) in given)


def _name(method: type[Method]) -> str:
    return re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})", "_", method.__name__).lower()


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()
