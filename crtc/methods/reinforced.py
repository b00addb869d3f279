"""Reinforcement without training: importance over the token graph, and Ward clusters weighted by it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.graph import feature_neighbors, neighbor_edges
from crtc.merging import give_mass, make_plan, mean, nearest_kept, weighted_means
from crtc.methods.learned import Learned
from crtc.methods.method import Method, Need, ScoreMethod, in_full, keep_all
from crtc.methods.norm import Norm
from crtc.methods.personalized_page_rank import PersonalizedPageRank
from crtc.methods.random import Random
from crtc.reinforcement.degree import balanced_degree, inverse_degree
from crtc.relevance import text_relevance
from crtc.selection import top_k
from crtc.sparse_ward import ward_tree_on
from crtc.tokens import DROPPED, Groups, Plan, SignalName, Tokens
from crtc.ward import FAINT, ward_tree

Aggregation = Literal["ward", "nearest", "top_k"]
LOOKED: SignalName = "question_attention"
FLOOR = 0.3
"""Share of the attention of a first look that is spread over all tokens; chosen on calibration scenes."""


@dataclass(frozen=True)
class Factor:
    """One part of an importance.

    Args:
        of: tokens, their groups and their directions to a value [G, M] that is not negative.
        needs: what the tokens must bring.
        question_aware: whether the text changes it.
    """

    of: Callable[[Tokens, Groups, Float[Tensor, "G M D"]], Float[Tensor, "G M"]]
    needs: frozenset[Need] = frozenset()
    question_aware: bool = False


def _floored(value: Float[Tensor, "G M"], groups: Groups) -> Float[Tensor, "G M"]:
    """Shares of a group, above a floor: what one look passed over still counts a little."""
    total = value.sum(1, keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)
    return value / total + FLOOR / groups.valid.sum(1, keepdim=True)


def _signal(name: SignalName) -> Factor:
    return Factor(
        lambda tokens, groups, x: groups.gather(getattr(tokens.signals, name).float()),
        frozenset({name}),
    )


def _rarity(tokens: Tokens, groups: Groups, x: Float[Tensor, "G M D"]) -> Float[Tensor, "G M"]:
    """Distance of every direction from the mean of its group's."""
    middle = x.sum(1, keepdim=True) / groups.valid.sum(1)[:, None, None]
    away: Tensor = (x - middle).norm(dim=-1)
    return away


def _score(method: ScoreMethod) -> Factor:
    """The score of a method that ranks."""
    return Factor(lambda tokens, groups, x: groups.gather(method.score(tokens)), method.needs, method.question_aware)


FACTORS: dict[str, Factor] = {
    "uniform": Factor(lambda tokens, groups, x: groups.valid.float()),
    "inverse_degree": Factor(lambda tokens, groups, x: inverse_degree(x, groups.valid)),
    "balanced_degree": Factor(lambda tokens, groups, x: balanced_degree(x, groups.valid)),
    "degree": Factor(lambda tokens, groups, x: groups.valid / inverse_degree(x, groups.valid).clamp(min=FAINT)),
    "rarity": Factor(_rarity),
    "page_rank": _score(PersonalizedPageRank("uniform")),
    "random": _score(Random()),
    "norm": _score(Norm()),
    "cls_attention": _signal("cls_attention"),
    "received_attention": _signal("received_attention"),
    "question_attention": Factor(
        lambda tokens, groups, x: _floored(groups.gather(getattr(tokens.signals, LOOKED).float()), groups),
        frozenset({LOOKED}),
        True,
    ),
    "text_relevance": Factor(
        lambda tokens, groups, x: text_relevance(tokens, groups).clamp(min=0), frozenset({"text"}), True
    ),
}
"""What an importance can be made of, by name; likeness to the text counts where it is positive."""


class Reinforced(Method):
    """Clusters by what loses least, weighted by importance, and keeps the weighted mean of each cluster, with its mass.

    Importance says how much it matters that a token stays told apart; Ward joins the two clusters a and b whose join
    costs least, `w_a w_b / (w_a + w_b) |c_a - c_b|^2` on directions. By default importance is the inverse of a token's
    degree in the similarity graph, so that what a picture repeats shares its weight and what is rare keeps it. Nothing
    is trained and nothing has a width: it works on the tokens of any model. A mean stands at the place of its cluster's
    member that is nearest to it.

    Args:
        importance: a name of `FACTORS`, or several joined by `*`, each with a power behind `^` if it is not 1, such as
            `"question_attention*inverse_degree^0.5"`. With `question_attention` the language model reads a coarse plan
            of `look` tokens first, weighted by the rest of the product.
            A learned method in its place gives the importance that it was trained to.
        aggregation: `"ward"`; or the most important stay, and each other token joins the one most like it: with its
            content for `"nearest"`, a mean weighted by importance, with its mass alone for `"top_k"`.
        look: tokens of every group in that first plan.
        neighbors: Ward joins only along edges to as many most similar tokens; with an importance that holds no pairs of
            tokens either, as all but `balanced_degree` and `page_rank`, long groups fit into memory. All pairs without.

    Raises:
        ValueError: if the importance has a factor of another name or a power that is no number, there is no such
            aggregation, or look is less than 1.

    Example:
        >>> Reinforced("cls_attention*inverse_degree").needs
        frozenset({'cls_attention'})
    """

    source = "arXiv 2501.16658 (idea); weighted Ward (Ward 1963) by inverse degree, here"
    family = "graph"

    def __init__(
        self,
        importance: str | Learned = "inverse_degree",
        *,
        aggregation: Aggregation = "ward",
        look: int = 64,
        neighbors: int | None = None,
    ):
        super().__init__()
        if aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation is {aggregation!r}, expected one of {', '.join(get_args(Aggregation))}")
        if look < 1:
            raise ValueError(f"look is {look!r}, expected at least 1")
        if neighbors is not None and (neighbors < 1 or aggregation != "ward"):
            raise ValueError(f"neighbors is {neighbors} with {aggregation}, expected at least 1, with ward")
        self.importance, self.aggregation, self.look, self.neighbors = importance, aggregation, look, neighbors
        if isinstance(importance, Learned):
            self.factors: list[tuple[str, float]] = []
            self.needs, self.question_aware = importance.needs, importance.question_aware
            return
        if not isinstance(importance, str):
            raise ValueError(f"importance is {importance!r}, expected names joined by * or a learned method")
        self.factors = [_factor(part.strip()) for part in importance.split("*")]
        self.uses_order = any(name == "random" for name, _ in self.factors)
        used = [FACTORS[name] for name, _ in self.factors]
        self.needs = frozenset[Need]().union(*(factor.needs for factor in used))
        self.question_aware = any(factor.question_aware for factor in used)

    def first_plan(self, tokens: Tokens) -> Plan | None:
        """The plan that the language model is to look at first, by the rest of the product."""
        if LOOKED not in self.needs:
            return None
        rest = [f"{name}^{power}" for name, power in self.factors if FACTORS[name].needs != {LOOKED}]
        coarse = Reinforced("*".join(rest) or "inverse_degree", neighbors=self.neighbors)
        plan: Plan = coarse(tokens, tokens.group_sizes.clamp(max=self.look))
        return plan

    def weight(self, tokens: Tokens) -> tuple[Groups, Float[Tensor, "G M D"], Float[Tensor, "G M"]]:
        """Groups, the directions of their tokens, and the importance of each, 1 for the largest; 0 where padded."""
        groups = Groups.of(tokens)
        x = F.normalize(groups.gather(tokens.x.float()), dim=-1)
        if isinstance(self.importance, Learned):
            logit = groups.gather(self.importance.score(tokens).detach()).masked_fill(~groups.valid, -torch.inf)
            return groups, x, (logit - logit.amax(1, keepdim=True)).exp().clamp(min=FAINT) * groups.valid
        weight = groups.valid.float()
        for name, power in self.factors:
            value = FACTORS[name].of(tokens, groups, x) * groups.valid
            most = value.amax(1, keepdim=True)
            share = torch.where(most > 0, value / most.clamp(min=torch.finfo(value.dtype).tiny), 1.0)
            weight = weight * share.clamp(min=FAINT) ** power
        return groups, x, (weight / weight.amax(1, keepdim=True)).clamp(min=FAINT) * groups.valid

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Log importance of every token, 0 for context."""
        groups, _, weight = self.weight(tokens)
        score = torch.zeros(len(tokens), device=weight.device)
        return score.index_put((groups.index[groups.valid],), weight[groups.valid].log())

    def planner(self, tokens: Tokens) -> Callable[[Int[Tensor, " G"]], Plan]:
        """Plans at any counts, which cut one tree."""
        with in_full(tokens):
            groups, x, weight = self.weight(tokens)
            label = self._labels(tokens, groups, x, weight)

        def plan(k: Int[Tensor, " G"]) -> Plan:
            self.check(tokens, k)
            if bool((k == tokens.group_sizes).all()):
                return keep_all(tokens)
            with in_full(tokens):
                if label is None:
                    kept = top_k(weight, groups.valid, k)
                    if self.aggregation == "top_k":
                        return give_mass(tokens, groups, kept)
                    owner = nearest_kept(x, kept, groups.valid)
                else:
                    _, owner = weighted_means(x, label(k), groups.valid, weight)
                    owner = owner.masked_fill(~groups.valid, DROPPED)
                return make_plan(tokens, groups, owner, mean(owner, groups.valid, weight))

        return plan

    def _labels(
        self, tokens: Tokens, groups: Groups, x: Float[Tensor, "G M D"], weight: Float[Tensor, "G M"]
    ) -> Callable[[Int[Tensor, " G"]], Int[Tensor, "G M"]] | None:
        """The cluster of every token for any counts, named by its first member; None where there are no clusters."""
        if self.aggregation != "ward":
            return None
        if self.neighbors is None:
            return ward_tree(x, weight, groups.valid).cut
        flat = F.normalize(tokens.x.float(), dim=-1)
        edges = neighbor_edges(feature_neighbors(flat, tokens.group, self.neighbors), flat)
        each = weight.new_ones(len(tokens)).index_put((groups.index[groups.valid],), weight[groups.valid])
        forest, place = ward_tree_on(flat, each, tokens.group, edges), groups.places(len(tokens))
        return lambda k: place[forest.cut(k)[groups.index]] * groups.valid

    def plan(self, tokens: Tokens, k: Int[Tensor, " G"]) -> Plan:
        """Keep one token for each of `k[g]` clusters of every group."""
        return self.planner(tokens)(k)


def _factor(text: str) -> tuple[str, float]:
    """Name and power of one part of a product."""
    name, mark, power = text.partition("^")
    if name not in FACTORS:
        raise ValueError(f"importance has a factor {name!r}, expected some of {', '.join(FACTORS)} joined by *")
    try:
        number = float(power) if mark else 1.0
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"importance has {text!r}, expected a finite number behind ^")
    return name, number
