"""Small tokens for tests, made in code."""

import torch
from torch import Tensor

from crtc.tokens import CONTEXT, IMAGE, TEXT, Groups, Signals, Tokens


def make_tokens(
    grids: list[list[tuple[int, int]]],
    *,
    num_text: int = 3,
    channels: int = 16,
    seed: int = 0,
    equal: bool = False,
) -> Tokens:
    """A ragged batch with text, a grid and all signals.

    Args:
        grids: for every sequence the rows and columns of its images; `num_text` text tokens follow the images.
        equal: all tokens alike.
    """
    generator = torch.Generator().manual_seed(seed)
    kind: list[int] = []
    sequence: list[int] = []
    group: list[int] = []
    grid: list[list[int]] = []
    groups = 0
    for number, images in enumerate(grids):
        for rows, columns in images:
            cells = [[0, row, column] for row in range(rows) for column in range(columns)]
            kind += [IMAGE] * len(cells)
            group += [groups] * len(cells)
            grid += cells
            groups += 1
        kind += [TEXT] * num_text
        group += [CONTEXT] * num_text
        grid += [[-1, -1, -1]] * num_text
        sequence += [number] * (len(kind) - len(sequence))

    def rows_of(*width: int) -> Tensor:
        drawn = torch.randn(len(kind), *width, generator=generator)
        # Values that bfloat16 holds exactly, so that the two types see the same input.
        return torch.ones_like(drawn) if equal else drawn.bfloat16().float()

    # A common direction, as real features have it, of random length: without it the two most isolated tokens are often
    # each other's nearest, an exact tie that the order of the tokens decides.
    lift = 3 * torch.rand(len(kind), 1, generator=generator) * torch.randn(channels, generator=generator)
    features = rows_of(channels) if equal else (rows_of(channels) + lift).bfloat16().float()
    inside = torch.tensor(group) >= 0
    signals = Signals(
        cls_attention=rows_of(1)[:, 0].abs() * inside,
        received_attention=rows_of(1)[:, 0].abs() * inside,
        keys=rows_of(channels) * inside[:, None],
        features=rows_of(channels) * inside[:, None],
        shallow_attention=rows_of(1)[:, 0].abs() * inside,
        layer_queries=rows_of(4, 8),
        layer_keys=rows_of(2, 8),
        plain_queries=rows_of(4, 8),
        plain_keys=rows_of(2, 8),
        normed_states=rows_of(channels),
        embeddings=rows_of(channels),
        question_attention=rows_of(1)[:, 0].abs() * inside,
    )
    return Tokens(
        features, torch.tensor(kind), torch.tensor(sequence), torch.tensor(group), torch.tensor(grid), signals
    )


def make_image(
    x: list[list[float]] | Tensor,
    *,
    columns: int | None = None,
    text: list[list[float]] | None = None,
    cls_attention: list[float] | None = None,
    received_attention: list[float] | None = None,
    shallow_attention: list[float] | None = None,
    keys: list[list[float]] | None = None,
) -> Tokens:
    """One image with the features given, in rows of `columns`, and the text after it."""
    visual = torch.as_tensor(x, dtype=torch.float32)
    words = torch.as_tensor(text if text is not None else [], dtype=torch.float32).reshape(-1, visual.shape[1])
    num, total = len(visual), len(visual) + len(words)
    width = columns or num
    grid = torch.full((total, 3), -1)
    grid[:num] = torch.tensor([[0, place // width, place % width] for place in range(num)])
    kind = torch.tensor([IMAGE] * num + [TEXT] * len(words))
    group = torch.tensor([0] * num + [CONTEXT] * len(words))

    def padded(rows: list[float] | list[list[float]] | None) -> Tensor | None:
        if rows is None:
            return None
        given = torch.tensor(rows)
        return torch.cat([given, given.new_zeros(len(words), *given.shape[1:])])

    signals = Signals(
        cls_attention=padded(cls_attention),
        received_attention=padded(received_attention),
        shallow_attention=padded(shallow_attention),
        keys=padded(keys),
    )
    return Tokens(torch.cat([visual, words]), kind, torch.zeros(total, dtype=torch.long), group, grid, signals)


def shuffle(tokens: Tokens, seed: int) -> tuple[Tokens, Tensor]:
    """The tokens permuted within their groups, and for every new place the old one."""
    generator = torch.Generator().manual_seed(seed)
    groups = Groups.of(tokens)
    old = torch.arange(len(tokens))
    for places, valid in zip(groups.index, groups.valid, strict=True):
        members = places[valid]
        old[members] = members[torch.randperm(len(members), generator=generator)]
    return Tokens(
        tokens.x[old],
        tokens.kind[old],
        tokens.sequence[old],
        tokens.group[old],
        tokens.grid[old],
        tokens.signals.select(old),
    ), old


def make_golden(seed: int, *, rows: int = 12, columns: int = 12, channels: int = 160, num_text: int = 5) -> Tokens:
    """One image with a question and all signals, the input on which the code of a method's authors was run.

    Drawn by a seeded generator on the CPU, so that it is the same everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    num = rows * columns

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    lift = draw(channels)  # real tokens share a direction, their cosines are mostly positive
    image, text = draw(num, channels) + 0.7 * lift, draw(num_text, channels) + 0.3 * lift
    features, keys = draw(num, channels) + 0.7 * draw(channels), draw(num, channels) + 0.7 * draw(channels)
    attention, received = draw(num).mul(1.5).softmax(0), draw(num).mul(1.5).softmax(0)
    shallow = draw(num).mul(1.5).softmax(0)  # drawn late, so that what came before it stays as it was
    heads = {name: draw(num + num_text, 4, 16) for name in ("layer_queries", "plain_queries")}
    heads |= {name: draw(num + num_text, 2, 16) + 0.7 * draw(2, 16) for name in ("layer_keys", "plain_keys")}
    states, embeddings = draw(num + num_text, channels), 0.2 * draw(num + num_text, channels)
    empty = torch.zeros(num_text)
    cells = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(rows), torch.arange(columns))
    return Tokens(
        torch.cat([image, text]),
        torch.tensor([IMAGE] * num + [TEXT] * num_text),
        torch.zeros(num + num_text, dtype=torch.long),
        torch.tensor([0] * num + [CONTEXT] * num_text),
        torch.cat([cells, torch.full((num_text, 3), -1)]),
        Signals(
            cls_attention=torch.cat([attention, empty]),
            received_attention=torch.cat([received, empty]),
            shallow_attention=torch.cat([shallow, empty]),
            keys=torch.cat([keys, torch.zeros(num_text, channels)]),
            features=torch.cat([features, torch.zeros(num_text, channels)]),
            normed_states=states,
            embeddings=embeddings,
            **heads,
        ),
    )
