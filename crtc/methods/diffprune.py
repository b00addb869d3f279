"""DiffPrune, also AutoSelect: a small transformer over the tokens of an image (2605.28051)."""

from torch import nn
from torch.nn import functional as F

from crtc.graph.neighbors import Neighbors
from crtc.methods.learned import Importance, Learned
from crtc.tokens import Groups, Tokens


class DiffPrune(Learned):
    """Transformer blocks in which the tokens of an image attend to each other, and a linear score.

    Train it through the gate `noise`, which puts noise of the same variance in the place of what a soft top-k drops.
    Deviations: narrower than the paper's 1024 channels and 16 heads, behind a linear layer, since a host here may have
    a few hundred channels; there is no denoiser in training. Dropped tokens give their mass to the kept token most
    like them.

    Args:
        width: channels of the host's embedding space.
        hidden: channels of a block.
        heads: of attention.
        layers: blocks.

    Raises:
        ValueError: if a number is less than 1, or heads do not divide the channels.
    """

    source = "DiffPrune, arXiv 2605.28051"

    def __init__(self, width: int, *, hidden: int = 128, heads: int = 4, layers: int = 2):
        super().__init__(width)
        if min(width, hidden, heads, layers) < 1:
            raise ValueError(f"width, hidden, heads, layers are {(width, hidden, heads, layers)}, expected at least 1")
        if hidden % heads:
            raise ValueError(f"hidden is {hidden}, expected a multiple of the {heads} heads")
        self.width, self.hidden, self.heads, self.layers = width, hidden, heads, layers
        self.enter = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, heads, 4 * hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.leave = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 1))

    def importance(self, tokens: Tokens, neighbors: Neighbors | None = None) -> Importance:
        """Score of every token among those of its image."""
        self.check_width(tokens, self.width)
        groups = Groups.of(tokens)
        state = self.enter(F.layer_norm(groups.gather(tokens.x.float()), (self.width,)))
        for block in self.blocks:
            state = block(state, src_key_padding_mask=~groups.valid)
        return Importance(groups, self.leave(state).squeeze(-1))
