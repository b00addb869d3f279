"""Personalised PageRank over the graph of similar tokens, with the question as the place to return to."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crtc.methods.method import ScoreMethod
from crtc.relevance import text_relevance
from crtc.similarity import nearest_neighbors
from crtc.tokens import Groups, Tokens

Start = Literal["question", "uniform"]


class PersonalizedPageRank(ScoreMethod):
    """Keeps the tokens that a walk over similar tokens visits most, r <- (1 - a) r0 + a r W.

    Edges join every token with its nearest neighbors by cosine, both ways, with the cosine as weight where it is
    positive; W has rows of sum one. The walk starts anew at r0: the likeness to the question above the group's least,
    scaled to sum one, or the uniform distribution. A token without edges starts anew for certain.

    Args:
        start: "question", or "uniform" for centrality that does not read the text.
        neighbors: of every token.
        damping: the share a of the walk that follows edges.
        steps: of the walk.
    """

    source = "personalised PageRank (Page et al. 1999; Haveliwala 2002) on a nearest-neighbor graph"
    family = "graph"
    needs = frozenset({"text"})
    question_aware = True

    def __init__(self, start: Start = "question", *, neighbors: int = 8, damping: float = 0.85, steps: int = 20):
        super().__init__()
        if start not in get_args(Start):
            raise ValueError(f"start is {start!r}, expected one of {', '.join(get_args(Start))}")
        if neighbors < 1:
            raise ValueError(f"neighbors is {neighbors!r}, expected at least 1")
        if not 0 <= damping < 1:
            raise ValueError(f"damping is {damping!r}, expected a share in [0, 1)")
        if steps < 0:
            raise ValueError(f"steps is {steps!r}, expected 0 or more")
        self.start: Start = start
        self.neighbors = neighbors
        self.damping = damping
        self.steps = steps
        if start == "uniform":
            self.needs = frozenset()
            self.question_aware = False

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """How often the walk is at every token."""
        groups = Groups.of(tokens)
        if self.start == "question":
            likeness = text_relevance(tokens, groups)
            asked = likeness - likeness.masked_fill(~groups.valid, torch.inf).amin(1, keepdim=True)
        else:
            asked = torch.zeros(groups.valid.shape, device=tokens.x.device)
        edges = nearest_neighbors(groups.gather(tokens.x), groups.valid, self.neighbors)
        visits = page_rank(edges, _distribution(asked, groups.valid), damping=self.damping, steps=self.steps)
        score = torch.zeros(len(tokens), device=tokens.x.device)
        score[tokens.candidates] = visits[groups.valid]
        return score


def page_rank(
    edges: Float[Tensor, "G M M"], start: Float[Tensor, "G M"], *, damping: float, steps: int
) -> Float[Tensor, "G M"]:
    """`steps` of r <- (1 - a) r0 + a r W; rows of `edges` without weight return to the start."""
    degree = edges.sum(-1, keepdim=True)
    walk = torch.where(degree > 0, edges / degree.masked_fill(degree == 0, 1), start[:, None])
    rank = start[:, None]
    for _ in range(steps):
        rank = (1 - damping) * start[:, None] + damping * (rank @ walk)
    return rank[:, 0]


def _distribution(score: Float[Tensor, "G M"], valid: Bool[Tensor, "G M"]) -> Float[Tensor, "G M"]:
    """Non-negative scores scaled to sum one over each group; uniform where all are zero."""
    score = score * valid
    score = torch.where(score.sum(1, keepdim=True) > 0, score, valid.to(score.dtype))
    return score / score.sum(1, keepdim=True)
