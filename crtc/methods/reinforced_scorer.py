"""Reinforced importance, learned: seed, propagate, inhibit, then cluster by it in a learned metric."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, Self, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from crtc import merging
from crtc.graph.neighbors import Neighbors, feature_neighbors, grid_neighbors, join, text_image, text_order
from crtc.greedy import farthest_points
from crtc.methods.learned import Importance, Learned
from crtc.reinforcement.degree import inverse_degree
from crtc.reinforcement.inhibition import inhibit, redundancy
from crtc.reinforcement.propagation import edge_softmax, propagate
from crtc.reinforcement.seed import Seed, text_of
from crtc.selection import top_k
from crtc.tokens import Groups, Plan, Tokens
from crtc.ward import FAINT, WardTree, ward_tree

_FROM_TEXT = 4
Selector = Literal["ward", "farthest", "top_k"]


@dataclass(frozen=True)
class Design:
    """What a scorer is made of; saved beside its weights.

    Args:
        width: channels of the host's embedding space.
        hidden: channels of a token's state.
        channels: of importance that propagate side by side.
        metric: dimensions of the learned metric; 0 clusters the directions of the tokens themselves.
        steps: rounds of propagation; 0 leaves importance where the seed put it.
        degree: feature neighbours of a token.
        reaches: distances, in patches, of the grid neighbours.
        graph: False makes it an MLP on each token and the question: no edges of any kind.
        text_edges: whether text takes part in the graph (text order, text to image).
        rewired: replaces every edge's source by a random token of its group, the control of the graph.
        inhibition: whether alike neighbours share importance.
        merge: whether dropped tokens give content to the token that stands for them, or only their mass.
        prior: whether importance is the inverse degree of the token graph times what is learned, which starts at 1: the
            scorer has to say what the formula does not.
        selector: `"ward"` joins what loses least, weighted by importance, until k are left; `"farthest"` covers the
            tokens from the farthest points, where distance counts as much as importance; `"top_k"` ranks them.
    """

    width: int
    hidden: int = 64
    channels: int = 8
    metric: int = 192
    steps: int = 3
    degree: int = 8
    reaches: tuple[int, ...] = (1, 4)
    graph: bool = True
    text_edges: bool = True
    rewired: bool = False
    inhibition: bool = True
    merge: bool = True
    prior: bool = False
    selector: Selector = "ward"

    def __post_init__(self) -> None:
        object.__setattr__(self, "reaches", tuple(self.reaches))  # a list where it was read from a file
        for name in ("width", "hidden", "channels", "degree"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.metric < 0:
            raise ValueError(f"metric is {self.metric}, expected at least 0")
        if any(reach < 1 for reach in self.reaches):
            raise ValueError(f"reaches is {self.reaches}, expected distances of at least 1 patch")
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}, expected at least 0")
        if self.selector not in get_args(Selector):
            raise ValueError(f"selector is {self.selector!r}, expected one of {', '.join(get_args(Selector))}")


WEIGHED = {"width", "hidden", "channels", "metric", "reaches", "graph", "inhibition"}
"""Fields of a design on which it depends what weights there are."""


@dataclass(frozen=True)
class Placed(Importance):
    """Importance with a place in a learned metric, in which tokens are clustered.

    Args:
        place: coordinates in the metric.
        temperature: of the soft assignment of training.
    """

    place: Float[Tensor, "G M Z"]
    temperature: Float[Tensor, ""]

    def repeat(self, groups: Groups, rows: Int[Tensor, " R"]) -> "Placed":
        """The same for `groups` that hold the tokens of these rows again."""
        return Placed(groups, self.logit[rows], self.place[rows], self.temperature)

    @cached_property
    def tree(self) -> WardTree:
        """Ward clusters of the places, weighted by importance: one tree for every count."""
        return ward_tree(self.place.detach(), self._weight().clamp(min=FAINT), self.groups.valid)

    def clusters(self, k: Int[Tensor, " G"], selector: Selector) -> "Clusters":
        """Anchors, one for each of `k[g]` clusters of every group, and the anchor that every token belongs to.

        A Ward cluster is anchored by its member nearest to its weighted mean.
        """
        if selector == "ward":
            label = self.tree.cut(k)
            centre, owner = merging.weighted_means(self.place, label, self.groups.valid, self._weight())
            chosen = torch.zeros_like(self.groups.valid).scatter(1, owner, True) & self.groups.valid
        else:
            chosen = self._chosen(k, selector)
        anchors = chosen.long().argsort(dim=1, descending=True, stable=True)[:, : int(k.max())]
        real = chosen.gather(1, anchors)
        wide = anchors[..., None].expand(-1, -1, self.place.shape[-1])
        middle = (centre if selector == "ward" else self.place).gather(1, wide)
        square = self.place.square().sum(-1)[:, :, None] + middle.square().sum(-1)[:, None]
        distance = torch.baddbmm(square, self.place, middle.transpose(1, 2), alpha=-2).clamp(min=0)
        if selector == "ward":
            return Clusters(anchors, real, distance, (chosen.cumsum(1) - 1).gather(1, owner).clamp(min=0))
        nearest = distance.detach().masked_fill(~real[:, None], torch.inf).argmin(-1)
        own = torch.arange(anchors.shape[1], device=anchors.device).expand_as(anchors)
        nearest.scatter_(1, anchors, torch.where(real, own, nearest.gather(1, anchors)))  # also among exact copies
        return Clusters(anchors, real, distance, nearest)

    def _weight(self) -> Float[Tensor, "G M"]:
        """Importance, 1 for the most important token of its group."""
        logit = self.logit.detach().masked_fill(~self.groups.valid, -torch.inf)
        return (logit - logit.amax(1, keepdim=True)).exp()

    def _chosen(self, k: Int[Tensor, " G"], selector: Selector) -> Bool[Tensor, "G M"]:
        """The most important, or farthest points where distance counts as much as importance."""
        if selector == "top_k":
            return top_k(self.logit.detach(), self.groups.valid, k)
        weight = self._weight()
        return farthest_points(self.place.detach(), weight.argmax(1), self.groups.valid, k, weight)


@dataclass(frozen=True)
class Clusters:
    """Anchors and what belongs to them.

    Args:
        anchors: the chosen tokens in their order, the last ones filled up where a group has fewer.
        real: which of these are chosen.
        distance: squared, in the learned metric, from every token to every anchor, or to the mean of a Ward cluster.
        nearest: the anchor of every token, by its place among the anchors.
    """

    anchors: Int[Tensor, "G K"]
    real: Bool[Tensor, "G K"]
    distance: Float[Tensor, "G M K"]
    nearest: Int[Tensor, "G M"]


class ReinforcedScorer(Learned):
    """Importance is seeded by relevance, propagated over the token graph and inhibited among copies; tokens are then
    clustered in a learned metric with importance as weight and merged ("contextual reinforcement", arXiv 2501.16658,
    whose features this follows; the equations are ours).

    Without `question` the text is not looked at: the same weights serve both ways, trained by text dropout.

    Args:
        width: channels of the host's embedding space.
        question: whether the text steers the choice.
        design: fields of `Design`.

    Raises:
        ValueError: if a field of the design is out of range.
    """

    source = "arXiv 2501.16658 (features), trained here"
    licence = "Apache-2.0"
    ways = (True, False)
    clusters = True

    def __init__(self, width: int, *, question: bool = True, **design: Any):
        super().__init__(width)
        unknown = set(design) - {field.name for field in fields(Design)}
        if unknown:
            raise ValueError(
                f"{sorted(unknown)} are no fields of a design, expected some of {[f.name for f in fields(Design)]}"
            )
        self.design = Design(width, **design)
        self.question_aware = question
        d = self.design
        self.seed = Seed(width, d.hidden, d.channels)
        statistics = 3 * d.channels if d.graph else 0
        self.head = nn.Sequential(
            nn.LayerNorm(self.seed.evidence + statistics),
            nn.Linear(self.seed.evidence + statistics, d.hidden),
            nn.GELU(),
            nn.Linear(d.hidden, 1),
        )
        if d.metric:
            self.metric = nn.Linear(width, d.metric, bias=False)
            nn.init.orthogonal_(self.metric.weight)
        if d.prior:
            for parameter in self.head[-1].parameters():
                nn.init.zeros_(parameter)
        self.log_temperature = nn.Parameter(torch.tensor(-3.0))
        if d.graph:
            relations = 1 + 8 * len(d.reaches) + 2 + 1
            self.share = nn.Parameter(torch.zeros(d.channels))
            self.likeness_gain = nn.Parameter(torch.full((d.channels,), 3.0))
            self.relation = nn.Parameter(torch.zeros(relations, d.channels))
            self.asked_relation = nn.Linear(d.hidden, relations * d.channels)
            self.salience = nn.Linear(self.seed.evidence, d.channels)
            self.word = nn.Linear(width, d.channels)
            nn.init.zeros_(self.asked_relation.weight)
            nn.init.zeros_(self.asked_relation.bias)
            nn.init.zeros_(self.salience.weight)
            nn.init.zeros_(self.salience.bias)
        if d.inhibition and d.graph:
            self.gain = nn.Parameter(torch.tensor(0.0))
            self.threshold = nn.Parameter(torch.tensor(0.8))

    def neighbors(self, tokens: Tokens) -> Neighbors | None:
        """The edges among visual tokens, which do not depend on the question; None if the design has no graph."""
        d = self.design
        if not d.graph:
            return None
        found = join(feature_neighbors(tokens.x, tokens.group, d.degree), grid_neighbors(tokens, reaches=d.reaches))
        return _rewired(found, tokens) if d.rewired else found

    def importance(self, tokens: Tokens, neighbors: Neighbors | None = None) -> Placed:
        """Run the network; `neighbors` saves finding the visual edges again.

        Raises:
            ValueError: if the tokens have another width than the scorer was made for.
        """
        d = self.design
        self.check_width(tokens, d.width)
        x = tokens.x.float()
        groups = Groups.of(tokens)
        words = text_of(tokens.sequence, tokens.candidates)
        asked = words.valid & self.question_aware
        sequence = tokens.sequence[groups.index[:, 0]]
        order = self._order(tokens, words) if d.graph and d.text_edges and self.question_aware else None
        visual = groups.gather(x)
        evidence, seed, question = self.seed(visual, words.gather(x), asked, order, sequence)
        place = F.normalize(visual, dim=-1)
        if d.metric:
            place = self.metric(F.layer_norm(visual, visual.shape[-1:])) * d.metric**-0.5
        if neighbors is None:
            neighbors = self.neighbors(tokens)
        if neighbors is not None:
            statistics = self._reinforce(tokens, x, groups, evidence, seed, question, neighbors)
            logit = self.head(torch.cat([evidence, statistics], -1)).squeeze(-1)
        else:
            logit = self.head(evidence).squeeze(-1)
        logit = 6 * torch.tanh(logit / 6)
        if d.inhibition and neighbors is not None:
            flat = logit.new_zeros(len(tokens)).index_put((groups.index[groups.valid],), logit[groups.valid])
            alike = _columns(neighbors, d.degree)  # grid neighbours are no copies
            logit = groups.gather(inhibit(flat, alike, F.softplus(self.gain), self.threshold))
        if d.prior:
            logit = (
                logit + inverse_degree(F.normalize(visual, dim=-1), groups.valid).clamp(min=FAINT).log() * groups.valid
            )
        return Placed(groups, logit, place, self.log_temperature.exp())

    def settle(self, said: Placed) -> None:
        """Grow the tree that all counts cut."""
        if self.design.selector == "ward":
            _ = said.tree

    def plan_from(self, said: Placed, tokens: Tokens, k: Int[Tensor, " G"], clusters: Clusters | None = None) -> Plan:
        """Cluster and merge, weighted by importance; `clusters` saves finding them again."""
        found = said.clusters(k, self.design.selector) if clusters is None else clusters
        owner = found.anchors.gather(1, found.nearest)
        if self.design.merge:
            weight = merging.mean(owner, said.groups.valid, said.logit.detach().exp())
        else:
            places = torch.arange(owner.shape[1], device=owner.device)
            weight = (owner == places).to(torch.float32)
        return merging.make_plan(tokens, said.groups, owner, weight)

    def _reinforce(
        self,
        tokens: Tokens,
        x: Float[Tensor, "N D"],
        groups: Groups,
        evidence: Float[Tensor, "G M E"],
        seed: Float[Tensor, "G M H"],
        question: Float[Tensor, "G W"],
        neighbors: Neighbors,
    ) -> Float[Tensor, "G M S"]:
        """Statistics of propagation: log importance after it, before it, and on similar tokens."""
        d = self.design
        with_text = d.text_edges and self.question_aware
        edges = (
            join(neighbors, _columns(text_image(tokens, from_text=_FROM_TEXT, from_image=1), _FROM_TEXT))
            if with_text
            else neighbors
        )
        inside = groups.index[groups.valid]
        value = torch.zeros(len(tokens), d.channels, device=x.device)
        if with_text:
            text = ~tokens.candidates
            value = value.index_put((text.nonzero()[:, 0],), F.softplus(self.word(F.layer_norm(x[text], x.shape[-1:]))))
        value = value.index_put((inside,), seed[groups.valid])
        salience = torch.zeros_like(value).index_put((inside,), self.salience(evidence)[groups.valid])
        bias = self.relation + self.asked_relation(question).view(len(question), -1, d.channels)
        rows = _each(edges, lambda part: part[inside])
        logit = (
            self.likeness_gain * rows.likeness[..., None]
            + bias[tokens.group[inside][:, None], rows.relation]
            + salience[rows.index]
        )
        weight = torch.zeros(len(tokens), edges.degree, d.channels, device=x.device)
        weight = weight.index_put((inside,), edge_softmax(logit, rows))
        share = torch.sigmoid(self.share) * tokens.candidates[:, None]  # text keeps its seed
        after = propagate(value, edges, weight, share, d.steps)
        copies = redundancy(after, _columns(neighbors, d.degree))
        return groups.gather(torch.cat([(part + 1e-4).log() for part in (after, value, copies)], -1))

    @staticmethod
    def _order(tokens: Tokens, words: Groups) -> Neighbors:
        """Text order among the padded text."""
        found = text_order(tokens)
        number = torch.zeros_like(tokens.sequence)
        number[words.index[words.valid]] = torch.arange(words.valid.numel(), device=number.device).view_as(words.valid)[
            words.valid
        ]
        flat = words.index.flatten()
        valid = found.valid[flat] & words.valid.flatten()[:, None]
        return Neighbors(number[found.index[flat]], found.likeness[flat], valid, found.relation[flat], found.relations)

    def made_of(self) -> dict[str, Any]:
        """The design."""
        return dict(vars(self.design))

    def with_design(self, **changes: Any) -> Self:
        """The same weights under another design, such as without propagation or merging.

        Raises:
            ValueError: if a field is unknown, out of range, or one of `WEIGHED`.
        """
        if fixed := sorted(changes.keys() & WEIGHED):
            raise ValueError(f"{', '.join(fixed)} cannot change, expected fields that leave the weights as they are")
        other = type(self)(question=self.question_aware, **{**vars(self.design), **changes})
        other.load_state_dict(self.state_dict())
        other.origin = self.origin
        return other.to(self.log_temperature.device).eval()


def _columns(neighbors: Neighbors, count: int) -> Neighbors:
    return _each(neighbors, lambda part: part[:, :count])


def _each(neighbors: Neighbors, change: Callable[[Tensor], Tensor]) -> Neighbors:
    parts = ("index", "likeness", "valid", "relation")
    changed: dict[str, Any] = {name: change(getattr(neighbors, name)) for name in parts}
    return replace(neighbors, **changed)


def _rewired(neighbors: Neighbors, tokens: Tokens) -> Neighbors:
    """Every edge from a random token of the same group instead; its likeness stays."""
    generator = torch.Generator().manual_seed(0)
    sizes = tokens.group_sizes
    first = sizes.cumsum(0) - sizes
    candidates = tokens.candidates.nonzero()[:, 0]
    inside = tokens.group[candidates]
    draw = torch.rand(len(candidates), neighbors.degree, generator=generator).to(tokens.x.device)
    index = neighbors.index.clone()
    index[candidates] = candidates[first[inside][:, None] + (draw * sizes[inside][:, None]).long()]
    return replace(neighbors, index=torch.where(neighbors.valid, index, neighbors.index))
