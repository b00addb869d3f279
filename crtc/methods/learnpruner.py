"""LearnPruner, stage one: an MLP says of every token by itself whether to keep it (ICLR 2026)."""

from torch import nn
from torch.nn import functional as F

from crtc.graph.neighbors import Neighbors
from crtc.methods.learned import Importance, Learned
from crtc.tokens import Groups, Tokens


class LearnPruner(Learned):
    """Two logits, keep and drop, from an MLP on each token; their difference is the score.

    Train it through the gate `mask`, a straight-through mask. Deviations: it reads the tokens that the language model
    reads, not the encoder's; a sigmoid shifted to sum to k stands in the backward pass, not that of a free softmax, so
    that training and use keep equally many; the 10 % of tokens chosen for diversity and the second stage, inside the
    language model, are left out. Dropped tokens give their mass to the kept token most like them.

    Args:
        width: channels of the host's embedding space.
        hidden: channels between the two layers, half a million weights at width 1024.

    Raises:
        ValueError: if a number of channels is less than 1.
    """

    source = "LearnPruner, ICLR 2026, stage one"
    place = "before the projector, in the language model"

    def __init__(self, width: int, *, hidden: int = 512):
        super().__init__(width)
        if min(width, hidden) < 1:
            raise ValueError(f"width is {width} and hidden {hidden}, expected at least 1")
        self.width, self.hidden = width, hidden
        self.decide = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 2))

    def importance(self, tokens: Tokens, neighbors: Neighbors | None = None) -> Importance:
        """Log odds of keeping every token."""
        self.check_width(tokens, self.width)
        groups = Groups.of(tokens)
        keep, drop = self.decide(F.layer_norm(groups.gather(tokens.x.float()), (self.width,))).unbind(-1)
        return Importance(groups, keep - drop)
