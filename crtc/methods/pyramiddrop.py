"""PyramidDrop: half of the visual tokens goes at each of three layers, by the last token's attention (2410.17247)."""

from jaxtyping import Float
from torch import Tensor

from crtc.methods.inside import InsideMethod, attention_paid, last_of
from crtc.methods.method import ScoreMethod
from crtc.tokens import Tokens


class PyramidDrop(InsideMethod, ScoreMethod):
    """Keeps 1/2, 1/4, 1/8 in front of layers 8, 16, 24 of 32; counts scale the schedule.

    A stage ranks by the attention that the last token of the prompt pays in the layer in front of which it stands, mean
    over heads; the code computes it beside the layer, here the layer is run once more for it. Deviation: positions stay
    as they were, where the code numbers them anew behind each stage.
    """

    source = "PyramidDrop, arXiv 2410.17247"
    licence = "MIT"
    family = "saliency"
    needs = frozenset({"layer_queries", "layer_keys"})
    question_aware = True
    reads_own_layer = True
    published_layers = (8, 16, 24)
    shares = (0.5, 0.25, 0.125)

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Attention that the last token pays."""
        return attention_paid(tokens, last_of(tokens))
