"""VisionSelector: the attention that a token pays to all of its image, by learned queries and keys (2510.16598)."""

from torch import nn
from torch.nn import functional as F

from crtc.graph.neighbors import Neighbors
from crtc.methods.learned import Importance, Learned
from crtc.tokens import Groups, Tokens


class VisionSelector(Learned):
    """Score_i = mean_j q_i . k_j / sqrt(hidden) over the tokens of an image, computed as q_i . mean_j k_j.

    Train it through the gate `scale`, a differentiable top-k times the tokens, with a growing penalty on what is
    neither kept nor dropped. Deviations: tokens are layer-normed; weights start as PyTorch draws them, where the code
    starts near zero. Dropped tokens give their mass to the kept token most like them.

    Args:
        width: channels of the host's embedding space.
        hidden: channels of queries and keys; half the width, as in the code, without.

    Raises:
        ValueError: if a number of channels is less than 1.
    """

    source = "VisionSelector, arXiv 2510.16598"

    def __init__(self, width: int, *, hidden: int | None = None):
        super().__init__(width)
        self.width, self.hidden = width, max(width // 2, 1) if hidden is None else hidden
        if min(self.width, self.hidden) < 1:
            raise ValueError(f"width is {width} and hidden {hidden}, expected at least 1")
        self.query = nn.Linear(width, self.hidden)
        self.key = nn.Linear(width, self.hidden)

    def importance(self, tokens: Tokens, neighbors: Neighbors | None = None) -> Importance:
        """Mean attention logit of every token."""
        self.check_width(tokens, self.width)
        groups = Groups.of(tokens)
        x = F.layer_norm(groups.gather(tokens.x.float()), (self.width,))
        key = (self.key(x) * groups.valid[..., None]).sum(1) / groups.valid.sum(1, keepdim=True)
        return Importance(groups, (self.query(x) @ key[..., None])[..., 0] * self.hidden**-0.5)
