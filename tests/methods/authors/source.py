"""Parts of other people's source, run as they are in the midst of stand-ins.

A definition is taken whole. A span of statements of a long function becomes a function of its own, whose parameters are
the variables that it needs and which returns those that are asked for; first and last are told by the names that the
statements assign.
"""

import ast
import copy
import linecache
import math
import os
import subprocess
import time
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

AROUND: dict[str, Any] = {
    **{name: getattr(typing, name) for name in ("Any", "Callable", "Dict", "List", "Optional", "Tuple", "Union")},
    **{"torch": torch, "nn": nn, "F": F, "np": np, "math": math, "os": os, "time": time},
}
"""What all code sees; imports of a file are not carried out, since many name packages that nothing here needs."""


@dataclass(frozen=True)
class Clones:
    """Repositories side by side in a folder, each in OWNER+NAME or OWNER/NAME.

    Args:
        folder: of all.
        fetch: whether to clone from GitHub what is not there.
    """

    folder: Path
    fetch: bool = False

    def read(self, repository: str, commit: str, file: str) -> "Source":
        """A file at a commit; a folder without git, such as an unpacked archive, is taken as it lies.

        Raises:
            ValueError: if there is no such repository, commit or file.
        """
        places = [self.folder / repository.replace("/", "+"), self.folder / repository]
        home = next((place for place in places if place.is_dir()), None)
        if home is None and self.fetch:
            home = self._clone(repository, places[0])
        if home is None:
            raise ValueError(f"{self.folder} has no {places[0].name}, a clone of https://github.com/{repository}")
        git = next((place for place in (home / ".git", home) if (place / "HEAD").is_file()), None)
        if git is None:
            if not (home / file).is_file():
                raise ValueError(f"{home} has no {file}")
            text = (home / file).read_text()
        else:
            shown = _git("--git-dir", str(git), "show", f"{commit}:{file}")
            if shown.returncode:
                raise ValueError(f"{home} has no {file} of {commit}: {shown.stderr.strip()}")
            text = shown.stdout
        return Source(text, f"{repository}/{file}", partial(self.read, repository, commit))

    @staticmethod
    def _clone(repository: str, home: Path) -> Path:
        address = f"https://github.com/{repository}"
        cloned = _git("clone", "--quiet", "--no-checkout", "--filter=blob:none", address, str(home))
        if cloned.returncode:
            raise ValueError(f"{address} could not be cloned: {cloned.stderr.strip()}")
        return home


def _git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)


class Source:
    """The text of a file.

    Args:
        text: of it.
        name: under which tracebacks and `inspect` know it.
        beside: reads another file of the same repository and commit.
    """

    def __init__(self, text: str, name: str, beside: "Callable[[str], Source] | None" = None):
        self.name, self.text = name, text
        self._beside = beside
        # torch.jit.script reads the lines of a function again
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)

    def beside(self, file: str) -> "Source":
        """Another file of the same repository and commit."""
        if self._beside is None:
            raise ValueError(f"{self.name} is of no repository, {file} cannot be read beside it")
        return self._beside(file)

    def define(self, *names: str, **around: Any) -> dict[str, Any]:
        """Carry out some definitions; the answer has each under the last part of its name.

        Args:
            names: of functions and classes; "Class.method" makes a function of a method.
            around: what they see beside each other and `AROUND`.
        """
        return self._run([self._find(name) for name in names], around)

    def span(
        self,
        inside: str,
        first: str,
        last: str,
        *,
        given: Sequence[str],
        wanted: Sequence[str],
        only: Collection[str] = (),
        numbers: Mapping[int, int] | None = None,
        **around: Any,
    ) -> Callable[..., Any]:
        """A function of some statements of a function.

        Args:
            inside: name of the function they are in.
            first: variable that the first one assigns.
            last: variable that the last one assigns, in the same block, or some statement inside the last one.
            given: parameters.
            wanted: variables to return, in a tuple.
            only: if any, statements that assign none of these are left out.
            numbers: other whole numbers in the place of some, such as the size of a grid.
            around: as in `define`.
        """
        body = [one for one in _between(self._find(inside), first, last) if not only or _assigned(one) & set(only)]
        made = ast.parse(f"def span({', '.join(given)}):\n    return ({''.join(f'{name}, ' for name in wanted)})")
        function = made.body[0]
        assert isinstance(function, ast.FunctionDef)
        function.body[:0] = [_Renumbered(numbers or {}).visit(one) for one in copy.deepcopy(body)]
        found: Callable[..., Any] = self._run([ast.fix_missing_locations(function)], around)["span"]
        return found

    def _run(self, body: list[ast.stmt], around: Mapping[str, Any]) -> dict[str, Any]:
        space = {**AROUND, "__name__": self.name, **around}
        exec(compile(ast.Module(body, []), self.name, "exec"), space)
        return space

    @cached_property
    def _tree(self) -> ast.Module:
        return ast.parse(self.text)

    def _find(self, name: str) -> ast.stmt:
        block = self._tree.body
        for part in name.split("."):
            found = [one for one in block if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == part]
            if not found:
                raise ValueError(f"{self.name} defines no {name}")
            block = found[-1].body
        return found[-1]


class _Renumbered(ast.NodeTransformer):
    def __init__(self, numbers: Mapping[int, int]):
        self.numbers = numbers

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if type(node.value) is not int or node.value not in self.numbers:
            return node
        return ast.copy_location(ast.Constant(self.numbers[node.value]), node)


def _between(function: ast.stmt, first: str, last: str) -> list[ast.stmt]:
    """Of the outermost block that assigns both, all from the first `first` to the last `last`, on its own or within."""
    for block in _blocks(function):
        begins = [place for place, one in enumerate(block) if first in _assigned(one)]
        ends = [place for place, one in enumerate(block) if any(last in _assigned(part) for part in ast.walk(one))]
        if begins and ends and begins[0] <= ends[-1]:
            return block[begins[0] : ends[-1] + 1]
    raise ValueError(f"no block of {getattr(function, 'name', function)} assigns {first} and then {last}")


def _blocks(function: ast.stmt) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block


def _assigned(statement: ast.AST) -> set[str]:
    """Variables that a statement itself assigns, wholly or in part."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    names: set[str] = set()
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
            for part in parts:
                while isinstance(part, ast.Subscript):
                    part = part.value
                names |= {part.id} if isinstance(part, ast.Name) else set()
    return names
