"""`crtc benchmark`: how long planning takes, and what batching saves over a loop that takes one picture at a time.

The loops here are the published algorithms as one would write them down for a single picture, with PyTorch's own
operations inside. They give the same plans, so that what is compared is only how the work is laid out.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc import __version__, counts
from crtc.methods import Method, catalogue, get_method, unready
from crtc.retention import Interval
from crtc.tokens import CONTEXT, IMAGE, TEXT, Groups, Plan, Signals, Tokens

WORDS = 12
"""Text tokens of every made-up prompt."""
HEADS, HEAD_WIDTH = 8, 24
"""Of the made-up layer of a language model."""


@dataclass(frozen=True)
class Sample:
    """One picture and its question, as a loop sees them.

    Args:
        x: visual tokens in the embedding space of the language model.
        features: the same before the projector.
        attention: of the [CLS] token.
        text: the question.
    """

    x: Float[Tensor, "M D"]
    features: Float[Tensor, "M De"]
    attention: Float[Tensor, " M"]
    text: Float[Tensor, "T D"]


def make_pictures(batch: int, size: int, channels: int, seed: int = 0) -> Tokens:
    """Made-up prompts of one picture each, with every signal: tokens gather in clumps, as those of an image do.

    Args:
        batch: pictures.
        size: visual tokens of each.
        channels: of the embedding space.
        seed: of all that is drawn.

    Raises:
        ValueError: if a number is less than 1.
    """
    for name, value in (("batch", batch), ("tokens", size), ("channels", channels)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    clumps = max(size // 6, 1)

    def clumped() -> Tensor:
        """Clumps around a direction that all share."""
        label = torch.randint(clumps, (batch, size), generator=generator)
        centre = draw(batch, clumps, channels) + 0.7 * draw(channels)
        return centre.gather(1, label[..., None].expand(-1, -1, channels)) + 0.4 * draw(batch, size, channels)

    def padded(visual: Tensor) -> Tensor:
        """With zeros for the text."""
        return torch.cat([visual, visual.new_zeros(batch, WORDS, *visual.shape[2:])], 1).flatten(0, 1)

    columns = round(size**0.5)
    place = torch.arange(size)
    cells = torch.stack([torch.zeros_like(place), place // columns, place % columns], 1)
    grid = torch.cat([cells, torch.full((WORDS, 3), -1)]).repeat(batch, 1)
    kind = torch.tensor([IMAGE] * size + [TEXT] * WORDS).repeat(batch)
    sequence = torch.arange(batch).repeat_interleave(size + WORDS)
    x = torch.cat([clumped(), draw(batch, WORDS, channels)], 1).flatten(0, 1)
    cls, received, shallow = (padded((1.5 * draw(batch, size)).softmax(1)) for _ in range(3))
    signals = Signals(
        cls,
        received,
        shallow,
        keys=padded(clumped()),
        features=padded(clumped()),
        layer_queries=draw(len(x), HEADS, HEAD_WIDTH),
        layer_keys=draw(len(x), HEADS, HEAD_WIDTH),
        plain_queries=draw(len(x), HEADS, HEAD_WIDTH),
        plain_keys=draw(len(x), HEADS, HEAD_WIDTH),
        normed_states=draw(len(x), channels),
        embeddings=x,
    )
    return Tokens(x, kind, sequence, torch.where(kind == IMAGE, sequence, CONTEXT), grid, signals)


def samples(tokens: Tokens) -> list[Sample]:
    """The pictures of `make_pictures` one by one."""
    features, attention = tokens.signals.features, tokens.signals.cls_attention
    assert features is not None and attention is not None
    found = []
    for number in range(tokens.num_groups):
        inside = tokens.group == number
        text = tokens.x[(tokens.sequence == number) & ~inside]
        found.append(Sample(tokens.x[inside], features[inside], attention[inside], text))
    return found


def _cosine(x: Float[Tensor, "M D"]) -> Float[Tensor, "M M"]:
    unit = F.normalize(x, dim=-1)
    return unit @ unit.T


def _scaled(value: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    return (value - value.min()) / (value.max() - value.min())


def _best(gain: Float[Tensor, " M"], kept: list[int]) -> int:
    gain = gain.clone()
    gain[kept] = -torch.inf
    return int(gain.argmax())


def _owned(x: Float[Tensor, "M D"], kept: list[int]) -> Int[Tensor, " M"]:
    """Who takes over every token's mass: of the kept ones the most similar."""
    unit, order = F.normalize(x, dim=-1), torch.tensor(sorted(kept))
    owner = order[(unit @ unit[order].T).argmax(1)]
    owner[order] = order
    return owner


def div_prune(one: Sample, k: int) -> Int[Tensor, " M"]:
    """DivPrune, algorithm 1: next is the token whose nearest kept one is farthest."""
    distance = (1 - _cosine(one.x)).clamp(min=0)
    distance = torch.maximum(distance, distance.T)  # two that are each other's nearest tie for the first place
    kept = [int(distance.clone().fill_diagonal_(torch.inf).amin(1).argmax())]
    while len(kept) < k:
        kept.append(_best(distance[kept].amin(0), kept))
    return _owned(one.x, kept)


def cdpruner(one: Sample, k: int) -> Int[Tensor, " M"]:
    """CDPruner: greedy MAP of the conditional kernel by incremental Cholesky (Chen et al. 2018, algorithm 1)."""
    relevance = (F.normalize(one.x, dim=-1) @ F.normalize(one.text, dim=-1).T).mean(1)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kernel = relevance[:, None] * _cosine(one.x) * relevance
    left, rows, kept = kernel.diagonal().clone(), torch.zeros(k, len(kernel)), list[int]()
    for step in range(k):
        kept.append(_best(left, kept))
        known = rows[:step, kept[-1]] @ rows[:step]
        rows[step] = (kernel[kept[-1]] - known) / left[kept[-1]].sqrt()
        left = (left - rows[step].square()).clamp(min=0)
    return _owned(one.x, kept)


def kcenter(one: Sample, k: int) -> Int[Tensor, " M"]:
    """k-center: next is the farthest point, the first one is nearest to the mean."""
    kept = [int((one.x - one.x.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(one.x),), torch.inf)
    while len(kept) < k:
        nearest = torch.minimum(nearest, (one.x - one.x[kept[-1]]).square().sum(1))
        kept.append(_best(nearest, kept))
    return _owned(one.x, kept)


def kmeans(one: Sample, k: int) -> Int[Tensor, " M"]:
    """Lloyd's k-means from a start by k-means++; every cluster is named by its medoid."""
    x = one.x - one.x.mean(0)
    scale = x.square().sum(1).mean().sqrt()
    start, nearest = list[int](), torch.ones(len(x))
    for draw in torch.rand(k, generator=torch.Generator().manual_seed(0)).tolist():
        mass = nearest.index_fill(0, torch.tensor(start, dtype=torch.long), 0).double().cumsum(0)
        start.append(int((mass > draw * mass[-1]).long().argmax()))
        distance = (x - x[start[-1]]).square().sum(1)
        nearest = distance if len(start) == 1 else torch.minimum(nearest, distance)
    centre = x[start]
    label = _nearest_centre(x, centre)
    for _ in range(20):
        before, centre = centre, _means(x, label, k)
        if bool((centre - before).norm(dim=1).max() <= 1e-4 * scale):
            break
        label = _nearest_centre(x, centre)
    distance = (x - _means(x, label, k)[label]).square().sum(1)
    owner = torch.empty_like(label)
    for number in range(k):
        members = (label == number).nonzero()[:, 0]
        near = distance[members] <= distance[members].min() + 1e-5 * scale.square()
        owner[members] = members[near][0]  # the two of a pair are equally near
    return owner


def _means(x: Float[Tensor, "M D"], label: Int[Tensor, " M"], k: int) -> Float[Tensor, "k D"]:
    total = torch.zeros(k, x.shape[1]).index_add(0, label, x)
    mean: Tensor = total / torch.bincount(label, minlength=k)[:, None]
    return mean


def _nearest_centre(x: Float[Tensor, "M D"], centre: Float[Tensor, "k D"]) -> Int[Tensor, " M"]:
    """A cluster that would be empty takes the token farthest from its own centre."""
    own, label = torch.cdist(x, centre).min(1)
    number = torch.bincount(label, minlength=len(centre))
    if bool((number == 0).any()):
        members = [(label == cluster).nonzero()[:, 0] for cluster in number.nonzero()[:, 0].tolist()]
        stays = torch.stack([inside[own[inside].argmin()] for inside in members])
        order = own.index_fill(0, stays, -1).argsort(descending=True, stable=True)
        for place, cluster in enumerate((number == 0).nonzero()[:, 0].tolist()):
            label[order[place]] = cluster
    return label


def tome(one: Sample, k: int) -> Int[Tensor, " M"]:
    """Token Merging: rounds of bipartite soft matching, even tokens into odd ones."""
    x, size, places = one.x, torch.ones(len(one.x), 1), torch.arange(len(one.x))
    owner = places.clone()
    while len(x) > k:
        unit = F.normalize(x, dim=-1)
        best, partner = (unit[::2] @ unit[1::2].T).max(1)
        merges = min(len(x) - k, len(x) // 2)
        edge = best.argsort(descending=True, stable=True)
        gone, stays = edge[:merges], edge[merges:].sort().values
        target = torch.arange(len(owner))
        target[places[::2][gone]] = places[1::2][partner[gone]]
        owner = target[owner]
        total = (x * size)[1::2].index_add(0, partner[gone], (x * size)[::2][gone])
        weight = size[1::2].index_add(0, partner[gone], size[::2][gone])
        x, size = torch.cat([x[::2][stays], total / weight]), torch.cat([size[::2][stays], weight])
        places = torch.cat([places[::2][stays], places[1::2]])
    return owner


def dpc_knn(one: Sample, k: int) -> Int[Tensor, " M"]:
    """DPC-kNN: the k tokens that are dense and far from any denser one are the centres."""
    distance = torch.cdist(one.x, one.x) * one.x.shape[1] ** -0.5
    density = (-distance.topk(min(5, len(distance)), largest=False).values.square().mean(1)).exp()
    denser = density[None] > density[:, None]
    to_denser = distance.masked_fill(~denser, torch.inf).amin(1)
    to_denser = torch.where(to_denser.isfinite(), to_denser, distance.max())
    centre = (density * to_denser).argsort(descending=True, stable=True)[:k].sort().values
    owner: Tensor = centre[distance[:, centre].argmin(1)]
    owner[centre] = centre
    return owner


def _cover(benefit: Float[Tensor, "R M"], weight: Float[Tensor, " M"] | float, k: int) -> list[int]:
    """Greedy maximum of `sum_r max_{kept} benefit`."""
    covered, kept = torch.zeros(len(benefit), 1), list[int]()
    for _ in range(k):
        kept.append(_best((benefit - covered).clamp(min=0).sum(0) * weight, kept))
        covered = torch.maximum(covered, benefit[:, kept[-1:]])
    return kept


def scope(one: Sample, k: int) -> Int[Tensor, " M"]:
    """SCOPE: next adds most to the coverage of all features, times its saliency."""
    return _owned(one.x, _cover(_cosine(one.features).clamp(min=0), one.attention, k))


def mmtok(one: Sample, k: int) -> Int[Tensor, " M"]:
    """MMTok: next adds most to the coverage of the question and of the image."""
    asked = (F.normalize(one.text, dim=-1) @ F.normalize(one.x, dim=-1).T / 0.02).softmax(1) / len(one.text)
    looks = (_cosine(one.features) / 0.2).softmax(1) / len(one.x)
    return _owned(one.x, _cover(torch.cat([asked, 0.5 * looks]), 1.0, k))


def maximal_marginal_relevance(one: Sample, k: int) -> Int[Tensor, " M"]:
    """MMR: next is salient and unlike the kept one that is most like it."""
    salience, likeness = _scaled(one.attention), _cosine(one.x)
    kept = [int(salience.argmax())]
    while len(kept) < k:
        kept.append(_best(0.5 * salience - 0.5 * likeness[kept].amax(0), kept))
    return _owned(one.x, kept)


def idselection(one: Sample, k: int) -> Int[Tensor, " M"]:
    """ID-Selection: the highest score stays and lowers the scores of those like it."""
    score, kept = _scaled(one.attention), list[int]()
    weight = (-20 * (1 - _cosine(one.x)).clamp(min=0).square()).exp()
    for _ in range(k):
        kept.append(_best(score, kept))
        score = score - weight[kept[-1]] * score[kept[-1]].clamp(min=0)
    return _owned(one.x, kept)


LOOPS: dict[str, Callable[[Sample, int], Int[Tensor, " M"]]] = {
    loop.__name__: loop
    for loop in (
        *(div_prune, cdpruner, kcenter, kmeans, tome, dpc_knn, scope, mmtok),
        *(maximal_marginal_relevance, idselection),
    )
}
"""By the name of the method: for every token of one picture the kept token that it belongs to."""


@dataclass(frozen=True)
class Duel:
    """A batched method beside its loop.

    Args:
        method: name.
        batched: milliseconds for the whole batch, median.
        loop: the same of the loop.
        faster: median of the loop over median of the batch, with its 95 % bootstrap interval over the repeats.
        equal: pictures of which both keep the same tokens.
        alike: share of the tokens that both give to the same kept token.
        pictures: of the batch.
    """

    method: str
    batched: float
    loop: float
    faster: Interval
    equal: int
    alike: float
    pictures: int


def owners(plan: Plan, tokens: Tokens) -> Int[Tensor, "G M"]:
    """For every candidate the place in its group of the kept token that it belongs to, groups of one size."""
    groups = Groups.of(tokens)
    return plan.kept[plan.slot[groups.index]] - groups.index[:, :1]


def duel(name: str, tokens: Tokens, k: Int[Tensor, " G"], repeats: int) -> Duel:
    """Time a method beside its loop.

    Args:
        name: of a method that has a loop.
        tokens: pictures of one size.
        k: tokens to keep of each.
        repeats: timed runs of each, after one that is not.
    """
    method, loop, each = get_method(name), LOOPS[name], list(zip(samples(tokens), k.tolist(), strict=True))

    def batched() -> Plan:
        plan: Plan = method(tokens, k)
        return plan

    def one_by_one() -> Tensor:
        return torch.stack([loop(one, count) for one, count in each])

    with torch.no_grad():
        ours, theirs = owners(batched(), tokens), one_by_one()
    mine, other, faster = race(batched, one_by_one, repeats)
    place = torch.arange(ours.shape[1])
    same: Bool[Tensor, " G"] = ((ours == place) == (theirs == place)).all(1)
    alike = float((ours == theirs).double().mean())
    return Duel(name, mine, other, faster, int(same.sum()), alike, len(ours))


def race(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float, Interval]:
    """Milliseconds of each, medians, and theirs over ours with its 95 % bootstrap interval over the repeats.

    The two take turns, so that a busy machine slows both; both should have run once before.
    """
    with torch.no_grad():
        pairs = np.array([[_seconds(ours), _seconds(theirs)] for _ in range(repeats)])
    mine, other = 1e3 * np.median(pairs, axis=0)
    draws = np.median(pairs[_resampled(repeats)], axis=1)
    low, high = np.percentile(draws[:, 1] / draws[:, 0], [2.5, 97.5])
    return float(mine), float(other), Interval(float(other / mine), float(low), float(high))


def planning(method: Method, tokens: Tokens, k: Int[Tensor, " G"], repeats: int, *, patience: float = 10.0) -> Interval:
    """Milliseconds per picture that a method takes for its plan: median and its 95 % bootstrap interval.

    Args:
        method: whose plans.
        tokens: pictures.
        k: tokens to keep of each.
        repeats: timed runs, after one that is not.
        patience: seconds after which three runs are enough.
    """
    took: list[float] = []
    with torch.no_grad():
        method(tokens, k)
        while len(took) < repeats and (len(took) < 3 or sum(took) < patience):
            took.append(_seconds(lambda: method(tokens, k)))
    times = 1e3 * np.array(took) / tokens.num_groups
    low, high = np.percentile(np.median(times[_resampled(len(times))], axis=1), [2.5, 97.5])
    return Interval(float(np.median(times)), float(low), float(high))


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _resampled(repeats: int) -> Int[np.ndarray, "2000 R"]:
    return np.random.default_rng(0).integers(repeats, size=(2000, repeats))


def benchmark(
    output: Path | str,
    *,
    methods: Sequence[str] | None = None,
    batch: int = 8,
    size: int = 576,
    count: int = 64,
    channels: int = 192,
    repeats: int = 15,
    seed: int = 0,
) -> str:
    """Time methods against loops and all ready methods by themselves on the CPU; save it and return the tables.

    Args:
        output: folder of `benchmark.json` and `table.md`.
        methods: names of the catalogue; all without.
        batch: pictures side by side.
        size: visual tokens of each.
        count: tokens to keep of each.
        channels: of the embedding space; the scorer that ships is for 192.
        repeats: timed runs.
        seed: of the made-up pictures.

    Raises:
        ValueError: if a number is impossible, or a method unknown or not ready.
    """
    if methods == []:
        raise ValueError("methods is [], expected names of the catalogue")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, expected at least 1")
    tokens = make_pictures(batch, size, channels, seed)
    k = counts.resolve(tokens.group_sizes, count=count)
    chosen = [name for name in catalogue() if name not in unready()]
    ready = {name: get_method(name) for name in (chosen if methods is None else methods)}
    duels = [duel(name, tokens, k, repeats) for name in ready if name in LOOPS]
    times: dict[str, Interval] = {}
    skipped = dict(unready()) if methods is None else {}
    for name, method in ready.items():
        try:
            times[name] = planning(method, tokens, k, repeats)
        except ValueError as error:
            skipped[name] = str(error)
    settings = {"batch": batch, "tokens": size, "count": count, "channels": channels, "repeats": repeats, "seed": seed}
    content = {
        "settings": settings,
        "machine": machine(),
        "duels": [{**vars(one), "faster": vars(one.faster)} for one in duels],
        "planning": {name: vars(interval) for name, interval in times.items()},
        "skipped": skipped,
    }
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(content, indent=1) + "\n")
    tables = _tables(duels, times, skipped, settings)
    (folder / "table.md").write_text(tables + "\n")
    return tables


def machine() -> dict[str, Any]:
    """What times depend on beside the settings."""
    return {
        "crtc": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def told(settings: dict[str, int]) -> str:
    """The settings and the machine in a sentence."""
    here = machine()
    return (
        f"{settings['batch']} pictures of {settings['tokens']} tokens with {settings['channels']} channels, "
        f"{settings['count']} kept, {settings['repeats']} repeats, {here['threads']} threads of "
        f"{here['device']}, torch {here['torch']}."
    )


def written(interval: Interval) -> str:
    """A number with its interval."""
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _tables(
    duels: Sequence[Duel], times: dict[str, Interval], skipped: dict[str, str], settings: dict[str, int]
) -> str:
    lines = [told(settings)]
    if duels:
        lines += ["", "| method | batched, ms | one by one, ms | times as fast | same kept sets | same owners, % |"]
        lines.append("|---" * 6 + "|")
        lines += [
            f"| {one.method} | {one.batched:.1f} | {one.loop:.1f} | {written(one.faster)} "
            f"| {one.equal} of {one.pictures} | {100 * one.alike:.2f} |"
            for one in duels
        ]
    lines += ["", "| method | planning, ms per picture |", "|---|---|"]
    lines += [f"| {name} | {written(interval)} |" for name, interval in times.items()]
    lines += [f"\n{name} was skipped: {reason}." for name, reason in skipped.items()]
    return "\n".join(lines)
