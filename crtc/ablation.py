"""Ablations: train and evaluate what each small YAML file changes, run only what is missing, and make one table."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from crtc import __version__, tracking
from crtc.dtypes import Name, resolve, told
from crtc.evaluation import Evaluation, weights_digest
from crtc.hosts.embedded import load_host
from crtc.methods.reinforced_scorer import WEIGHED, Design, ReinforcedScorer
from crtc.retention import Interval
from crtc.showing import record
from crtc.tasks.picture import Glyphs
from crtc.training.fit import fit_scorer
from crtc.training.scorer import ScorerTraining

WAYS = ("aware", "blind")
STORED = torch.bfloat16
"""Float type in which the weights of a host are told apart, whatever it runs in: results of one machine are those of
the next.
"""


def read(path: Path | str) -> dict[str, Any]:
    """One ablation: `about` (a line for the table), `model` (changes of training), `use` (changes of the finished
    scorer's design), `mass`, `seeds`, `every` (steps between validations), `evaluate`.

    Raises:
        ValueError: if the file cannot be read or holds other keys.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no readable YAML: {error}") from error
    content = {} if content is None else content
    _check_keys(content, {"about", "model", "use", "mass", "seeds", "every", "evaluate"}, str(path))
    model = content.get("model", {})
    design = {field.name for field in fields(Design)} - {"width"}
    _check_keys(model, set(inspect.signature(ScorerTraining).parameters) - {"host", "seed", "scorer"}, f"{path}: model")
    _check_keys(model.get("design", {}), design, f"{path}: design")
    _check_keys(content.get("use", {}), design - WEIGHED, f"{path}: use")
    asked = content.get("evaluate", {})
    _check_keys(asked, {"pictures", "questions", "counts"}, f"{path}: evaluate")
    for name, value in {"seeds": content.get("seeds", 1), "every": content.get("every", 1), **asked}.items():
        numbers = value if name == "counts" and isinstance(value, list) and value else [value]
        if (name == "counts") != isinstance(value, list) or not all(type(one) is int and one > 0 for one in numbers):
            expected = "a list of positive whole numbers" if name == "counts" else "a positive whole number"
            raise ValueError(f"{path}: {name} is {value!r}, expected {expected}")
    return dict(content)


def _check_keys(content: Any, known: set[str], where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} is a {type(content).__name__}, expected keys out of {', '.join(sorted(known))}")
    if set(content) - known:
        unknown = sorted(map(str, set(content) - known))
        raise ValueError(f"{where} holds {unknown}, expected some of {', '.join(sorted(known))}")


def stacked(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` on top of `base`, dictionary by dictionary."""
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = stacked(merged[key], value) if both else value
    return merged


def ablate(
    base: Path | str,
    files: Sequence[Path | str],
    folder: Path | str = "runs/ablation",
    *,
    host: str = "embedded",
    device: str = "cpu",
    dtype: Name = "auto",
) -> str:
    """Run every ablation and seed whose result is missing; write and return the table.

    Args:
        base: what all share.
        files: one change each.
        folder: of the results, one folder per ablation and seed.
        host: to train and evaluate on.
        device: to evaluate on; scorers train where Lightning finds best.
        dtype: of the host, in training where a file asks for no `precision` of its own; "auto" is the one that is fast
            on the device, and takes results of any that are there.

    Raises:
        ValueError: if there is no such dtype, a file cannot be read, two have the same name, or their counts differ,
            which make the columns.
    """
    tracking.mode()  # refuses before the work, not behind it
    folder = Path(folder)
    shared = read(base)
    resolve(dtype, device)  # refuses before the work, not behind it
    weights = weights_digest(load_host(host, dtype=STORED)[0])
    names = [Path(base).stem, *(Path(file).stem for file in files if Path(file).resolve() != Path(base).resolve())]
    if len(set(names)) < len(names):
        raise ValueError(f"ablations are named {sorted(names)}, expected a name of its own for each file")
    plans = [shared, *(stacked(shared, read(file)) for file in files if Path(file).resolve() != Path(base).resolve())]
    asked = {name: _counts(plan) for name, plan in zip(names, plans, strict=True)}
    if len(set(asked.values())) > 1:
        raise ValueError(f"counts are {asked}, expected the same in all ablations of a table")
    missing = [
        (plan, seed, target, name)
        for name, plan in zip(names, plans, strict=True)
        for seed in range(int(plan.get("seeds", 1)))
        if not _finished(target := folder / f"{name}-seed{seed}", plan, weights, dtype)
    ]
    if missing and dtype == "auto":
        print(f"the host runs in {told(device)}")
    for plan, seed, target, name in missing:
        _run_one(plan, seed, target, name, host, weights, device, dtype)
    table = tabulate(folder, names, plans, weights, dtype)
    (folder / "table.md").write_text(table)
    return table


def _counts(plan: dict[str, Any]) -> tuple[int, ...]:
    return tuple(plan.get("evaluate", {}).get("counts", (64, 32, 16)))


def _finished(target: Path, plan: dict[str, Any], weights: str, dtype: Name) -> bool:
    """Whether the result is there and of this plan, host, version and float type, if one is asked for; names and the
    number of seeds do not matter.
    """
    file = target / "ablation.json"
    if not file.exists():
        return False
    stored = json.loads(file.read_text())
    wanted, found = ({k: v for k, v in one.items() if k not in ("about", "seeds")} for one in (plan, stored["plan"]))
    same = stored.get("weights") == weights and stored.get("crtc") == __version__
    typed = dtype == "auto" or stored["summary"]["config"]["dtype"] == f"torch.{dtype}"
    return bool(same and typed and found == json.loads(json.dumps(wanted)))


def _run_one(
    plan: dict[str, Any], seed: int, target: Path, name: str, host: str, weights: str, device: str, dtype: Name
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    asked_type = {} if dtype == "auto" else {"precision": dtype}
    settings = {**asked_type, **plan.get("model", {}), "host": host, "seed": seed}
    # what trained alike is trained once: ablations of use alone share the scorer of their training
    every = int(plan.get("every", 100))
    trained = target.parent / "scorers" / _key({**settings, "every": every, "weights": weights, "crtc": __version__})
    if not (trained / "scorer" / "model.safetensors").exists():
        fit_scorer(ScorerTraining(**settings), trained, every=every, patience=None, track=False)
    asked = plan.get("evaluate", {})
    mass = bool(plan.get("mass", True))
    use = plan.get("use", {})
    methods = {f"reinforced_scorer {way}": _scorer(trained / "scorer", way == "aware", use) for way in WAYS}
    loaded = load_host(host, dtype=resolve(dtype, device), device=device)
    for method in methods.values():
        method.to(loaded[0].device)
    task = Glyphs("test", int(asked.get("pictures", 60)), int(asked.get("questions", 12)), seed=0)
    results = Evaluation(loaded, task, methods, counts=_counts(plan), masses=(mass,)).run(target)
    config = {"ablation": name, "seed": seed, **plan}
    record(
        results, loaded, task, methods, target, named=host, scorers=[trained / "scorer"], kind="ablate", config=config
    )
    summary = json.loads((target / "results.json").read_text())
    made = {"plan": plan, "host": host, "weights": weights, "crtc": __version__, "seed": seed, "summary": summary}
    (target / "ablation.json").write_text(json.dumps(made, indent=1) + "\n")


def _scorer(folder: Path, question: bool, use: dict[str, Any]) -> ReinforcedScorer:
    scorer = ReinforcedScorer.from_pretrained(folder, question=question)
    return scorer.with_design(**use) if use else scorer


def _key(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def tabulate(
    folder: Path, names: Sequence[str], plans: Sequence[dict[str, Any]], weights: str, dtype: Name = "auto"
) -> str:
    """Accuracy relative to all tokens in percent, mean over seeds; with one seed its bootstrap interval, with more
    their range. KL to all tokens in nats, mean over the counts, and over seeds with their range.
    """
    lines: list[str] = []
    header: list[str] = []
    for name, plan in zip(names, plans, strict=True):
        targets = [folder / f"{name}-seed{seed}" for seed in range(int(plan.get("seeds", 1)))]
        done = [target / "ablation.json" for target in targets if _finished(target, plan, weights, dtype)]
        summaries = [json.loads(file.read_text())["summary"] for file in done]
        if not summaries:
            continue
        cells = []
        for way in WAYS:
            rows = [[row for row in said["rows"] if row["method"] == f"reinforced_scorer {way}"] for said in summaries]
            counts = sorted({row["count"] for row in rows[0]}, reverse=True)
            header = [column for w in WAYS for column in (*(f"{w} {count}" for count in counts), f"KL {w}")]
            for count in counts:
                found = [row["relative"] for one in rows for row in one if row["count"] == count]
                values = np.array([entry["value"] for entry in found], float)  # None, where nothing was right, is NaN
                low, high = (values.min(), values.max()) if len(found) > 1 else (found[0]["low"], found[0]["high"])
                cells.append(str(Interval(*map(_number, (values.mean(), low, high)))))
            kl = [np.mean([row["kl_mean"] for row in one]) for one in rows]
            spread = f" [{min(kl):.3f}, {max(kl):.3f}]" if len(kl) > 1 else ""
            cells.append(f"{np.mean(kl):.3f}{spread}")
        lines.append(f"| {plan.get('about', name)} | {len(summaries)} | " + " | ".join(cells) + " |")
    top = ["| change | seeds | " + " | ".join(header) + " |", "|---|---|" + "---|" * len(header)]
    return "\n".join([*top, *lines]) + "\n"
