"""The seed of reinforcement: how relevant a visual token is to the question, or in itself."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from crtc.graph.neighbors import Neighbors
from crtc.tokens import Groups


class TextContext(nn.Module):
    """Two rounds of message passing along the text order, so that "red ring" is more than "red" and "ring".

    Args:
        width: channels of a text state.
        degree: neighbours in the text order.
    """

    def __init__(self, width: int, degree: int = 4):
        super().__init__()
        self.rounds = nn.ModuleList(
            nn.Sequential(nn.LayerNorm((degree + 1) * width), nn.Linear((degree + 1) * width, width), nn.GELU())
            for _ in range(2)
        )

    def forward(
        self, state: Float[Tensor, "T W"], neighbors: Int[Tensor, "T K"], valid: Bool[Tensor, "T K"]
    ) -> Float[Tensor, "T W"]:
        """States of the text tokens after hearing their neighbours (numbers within the text)."""
        for layer in self.rounds:
            heard = state[neighbors] * valid[..., None]
            state = state + layer(torch.cat([state, heard.flatten(1)], 1))
        return state


class Relevance(nn.Module):
    """Bilinear relevance of visual tokens to text tokens, several heads, largest and mean over the text.

    Args:
        visual: channels of a visual token.
        text: channels of a text state.
        heads: bilinear forms.
        rank: of each form.
    """

    def __init__(self, visual: int, text: int, heads: int = 8, rank: int = 16):
        super().__init__()
        self.heads, self.rank = heads, rank
        self.visual = nn.Linear(visual, heads * rank)
        self.text = nn.Linear(text, heads * rank)

    def forward(
        self, visual: Float[Tensor, "G M V"], text: Float[Tensor, "G T W"], valid: Bool[Tensor, "G T"]
    ) -> Float[Tensor, "G M R"]:
        """Relevances [G, M, 2 * heads]; zero where a group has no text."""
        left = self.visual(visual).unflatten(-1, (self.heads, self.rank)).transpose(1, 2)
        right = self.text(text).unflatten(-1, (self.heads, self.rank)).transpose(1, 2)
        like = left @ right.transpose(-1, -2) / self.rank**0.5  # [G, heads, M, T]
        real = valid[:, None, None]
        top = like.masked_fill(~real, torch.finfo(like.dtype).min).amax(-1)
        mean = (like * real).sum(-1) / real.sum(-1).clamp(min=1)
        seen = valid.any(1)[:, None, None]
        return torch.cat([top * seen, mean * seen], 1).transpose(1, 2)


class Seed(nn.Module):
    """State, relevance and seed of every visual token.

    Args:
        width: channels of a token in the language model's space.
        hidden: channels of a state.
        channels: of importance.

    Attributes:
        evidence: channels of the evidence that `forward` returns.
    """

    def __init__(self, width: int, hidden: int, channels: int):
        super().__init__()
        self.visual = nn.Linear(width, hidden)
        self.text = nn.Linear(width, hidden)
        self.context = TextContext(hidden)
        self.relevance = Relevance(width, hidden)
        self.film = nn.Linear(hidden, 2 * hidden)
        self.mix = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        evidence = self.evidence = hidden + 2 * self.relevance.heads
        self.head = nn.Sequential(
            nn.LayerNorm(evidence), nn.Linear(evidence, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(
        self,
        visual: Float[Tensor, "G M D"],
        text: Float[Tensor, "S T D"],
        valid: Bool[Tensor, "S T"],
        order: Neighbors | None,
        sequence: Int[Tensor, " G"],
    ) -> tuple[Float[Tensor, "G M E"], Float[Tensor, "G M H"], Float[Tensor, "G W"]]:
        """Evidence, seed (positive), and the question's state.

        Args:
            visual: candidates of every group.
            text: context tokens of every sequence.
            valid: which text is there; none at all makes the seed question-blind.
            order: text order among the padded text, numbers `s * T + t`; None without message passing.
            sequence: of every group.
        """
        normal = F.layer_norm(visual, visual.shape[-1:])
        words = self.text(F.layer_norm(text, text.shape[-1:]))
        if order is not None:
            words = self.context(words.flatten(0, 1), order.index, order.valid).view_as(words)
        question = (words * valid[..., None]).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
        scale, shift = self.film(question)[sequence][:, None].chunk(2, -1)
        asked = valid.any(1)[sequence][:, None, None]
        state = self.visual(normal)
        state = state * (1 + scale * asked) + shift * asked
        state = state + self.mix(state)
        evidence = torch.cat([state, self.relevance(normal, words[sequence], valid[sequence])], -1)
        return evidence, F.softplus(self.head(evidence)), question[sequence] * asked[:, 0]


def text_of(sequence: Int[Tensor, " N"], candidates: Bool[Tensor, " N"]) -> Groups:
    """The context tokens of every sequence side by side."""
    count = int(sequence.max()) + 1
    member = (~candidates).nonzero()[:, 0]
    sizes = torch.bincount(sequence[member], minlength=count)
    valid = torch.arange(max(int(sizes.max()), 1), device=sequence.device) < sizes[:, None]
    index = torch.zeros(valid.shape, dtype=torch.long, device=sequence.device)
    index[valid] = member
    return Groups(index, valid)
