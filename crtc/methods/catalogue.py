"""Methods by name, found from what the package exports."""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

from crtc.methods.learned import FILES, UNREADY, Learned, method_in
from crtc.methods.method import Method, name_of
from crtc.methods.sharing import local_folder

GOLDEN = Path(__file__).parents[2] / "tests" / "methods" / "golden"


def catalogue() -> dict[str, type[Method]]:
    """Every method that can be made, by name, in alphabetical order."""
    exports = vars(importlib.import_module("crtc.methods")).values()
    found = {
        name_of(entry): entry
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


def trainable() -> dict[str, type[Learned]]:
    """The methods of the catalogue that can be trained."""
    return {name: kind for name, kind in catalogue().items() if issubclass(kind, Learned)}


def unready() -> dict[str, str]:
    """The methods of the catalogue that their name alone does not make, with the reason."""
    return {name: UNREADY for name, kind in trainable().items() if not kind.shipped().is_dir()}


def trained(source: Path | str, *, revision: str | None = None, **settings: Any) -> Learned:
    """The learned method whose weights a folder, or a repository of the hub, holds.

    Args:
        source: a folder as `Learned.save_pretrained` and `crtc fit` write it, or a hub id where there is no folder.
        revision: branch, tag or commit on the hub.
        settings: what the method takes beside its weights.

    Raises:
        ValueError: if the weights cannot be had or read, or their method is not in the catalogue.
    """
    folder = local_folder(source, FILES, revision)
    name = method_in(folder)
    for kind in trainable().values():
        if kind.__name__ == name:
            return kind.from_pretrained(folder, **settings)
    raise ValueError(
        f"{source} holds a {name!r}, expected one of {', '.join(k.__name__ for k in trainable().values())}"
    )


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()
