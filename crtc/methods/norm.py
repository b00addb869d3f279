"""Length of the embedding, a control that looks at every token alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from crtc.methods.method import ScoreMethod
from crtc.tokens import Tokens


class Norm(ScoreMethod):
    """Keeps the longest tokens, by their Euclidean norm in the language model's embedding space."""

    source = "control"
    family = "control"

    def score(self, tokens: Tokens) -> Float[Tensor, " N"]:
        """Euclidean norm."""
        length: Tensor = torch.linalg.vector_norm(tokens.x.float(), dim=-1)
        return length
