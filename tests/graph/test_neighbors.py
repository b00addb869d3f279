"""Neighbour lists: exact on small cases, equal to brute force on random ones."""

from dataclasses import replace

import pytest
import torch

from crtc.graph.neighbors import Neighbors, feature_neighbors, grid_neighbors, join, text_image, text_order
from crtc.graph.token_graph import token_graph
from crtc.tokens import CONTEXT, IMAGE, TEXT, Tokens
from tests.making import make_image, make_tokens


def edges(neighbors):
    """Every edge as (source, target, relation), sorted."""
    index, _, relation = neighbors.to_edges()
    return sorted(zip(*index.tolist(), relation.tolist(), strict=True))


def near(neighbors, node):
    """The neighbours of a node in order."""
    return neighbors.index[node][neighbors.valid[node]].tolist()


def brute_force(x, owner, degree):
    """For every token its most similar ones with the same owner, one pair at a time."""
    found = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i and owner[j] == owner[i] >= 0]
        likeness = {j: float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in others}
        found.append(sorted(others, key=likeness.__getitem__, reverse=True)[:degree])
    return found


@pytest.mark.parametrize("degree", [1, 3, 20])
@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_feature_neighbors_are_the_most_similar(degree, chunk):
    generator = torch.Generator().manual_seed(0)
    owner = torch.tensor([0] * 7 + [CONTEXT] * 2 + [1] + [2] * 10 + [CONTEXT] + [0, 2])  # ragged, scattered
    x = torch.randn(len(owner), 5, generator=generator)
    found = feature_neighbors(x, owner, degree, chunk=chunk)
    assert found.degree == degree
    expected = brute_force(x, owner, degree)
    assert [near(found, i) for i in range(len(x))] == expected
    for i, others in enumerate(expected):
        cosine = torch.stack([torch.cosine_similarity(x[i], x[j], dim=0) for j in others]) if others else torch.zeros(0)
        assert torch.allclose(found.likeness[i][found.valid[i]], cosine, atol=1e-6)
    masked = ~found.valid
    assert torch.equal(found.index[masked], torch.arange(len(x))[:, None].expand_as(masked)[masked])
    assert not found.likeness[masked].any()


def test_chunks_change_nothing():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    owner = torch.arange(40) // 15
    whole, parts = feature_neighbors(x, owner, 5), feature_neighbors(x, owner, 5, chunk=3)
    assert torch.equal(whole.index, parts.index) and torch.equal(whole.valid, parts.valid)
    assert torch.allclose(whole.likeness, parts.likeness, atol=1e-6)


def test_feature_neighbors_refuse_degree_zero():
    with pytest.raises(ValueError, match="degree is 0"):
        feature_neighbors(torch.zeros(2, 2), torch.zeros(2).long(), 0)


def test_no_owner_no_edges():
    found = feature_neighbors(torch.ones(3, 2), torch.full((3,), CONTEXT), 2)
    assert not found.valid.any() and found.index.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_grid_of_three_by_three():
    found = grid_neighbors(make_tokens([[(3, 3)]], num_text=1))
    assert [near(found, i) for i in range(10)] == [
        [1, 3, 4],
        [0, 2, 3, 4, 5],
        [1, 4, 5],
        [0, 1, 4, 6, 7],
        [0, 1, 2, 3, 5, 6, 7, 8],
        [1, 2, 4, 7, 8],
        [3, 4, 7],
        [3, 4, 5, 6, 8],
        [4, 5, 7],
        [],
    ]
    assert found.relation[4].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert torch.equal(found.likeness, found.valid.float())


def test_grid_keeps_to_the_group_and_reaches_far():
    tokens = make_tokens([[(1, 2), (2, 1)], [(1, 3)]], num_text=1)
    pairs = [(source, target) for source, target, _ in edges(grid_neighbors(tokens))]
    assert pairs == [(0, 1), (1, 0), (2, 3), (3, 2), (5, 6), (6, 5), (6, 7), (7, 6)]
    far = grid_neighbors(tokens, reaches=(1, 2))
    assert far.degree == 16
    assert {edge for edge in edges(far) if edge[2] > 9} == {(7, 5, 14), (5, 7, 13)}


def clip(frames):
    """Frames of 1 x 2, one word."""
    grid = [[t, 0, c] for t in range(frames) for c in range(2)] + [[-1] * 3]
    num = len(grid) - 1
    return Tokens(
        torch.randn(num + 1, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([IMAGE] * num + [TEXT]),
        torch.zeros(num + 1, dtype=torch.long),
        torch.tensor([0] * num + [CONTEXT]),
        torch.tensor(grid),
    )


def test_the_same_patch_in_the_next_frame():
    found = grid_neighbors(clip(3))
    assert found.degree == 10
    assert [near(found, i) for i in range(6)] == [[2, 1], [3, 0], [0, 4, 3], [1, 5, 2], [2, 5], [3, 4]]
    assert (2, 0, 1) in edges(found) and (0, 2, 0) in edges(found)


def test_relations_mean_the_same_with_and_without_frames():
    still, moving = edges(token_graph(clip(1), degree=1)), edges(token_graph(clip(2), degree=1))
    assert {relation for *_, relation in still} <= {relation for *_, relation in moving}
    text_to_image = 1 + 2 + 8
    for tokens in (clip(1), clip(2)):
        word = len(tokens) - 1
        into_image = {relation for source, _, relation in edges(token_graph(tokens, degree=1)) if source == word}
        assert into_image == {text_to_image}
        without = {
            relation for source, _, relation in edges(token_graph(tokens, degree=1, reaches=())) if source == word
        }
        assert without == {1 + 2}  # the frames before and after have numbers, be there any or not


def test_relations_of_text_alone():
    tokens = make_tokens([[(2, 2)]], num_text=3)
    text = replace(tokens, group=torch.full_like(tokens.group, CONTEXT), kind=torch.full_like(tokens.kind, TEXT))
    assert {relation for *_, relation in edges(token_graph(text))} == {13, 14, 15, 16}
    assert {16} < {relation for *_, relation in edges(token_graph(tokens))}


def test_text_order_skips_images_and_keeps_to_the_sequence():
    group = torch.tensor([CONTEXT, 0, CONTEXT, CONTEXT, CONTEXT])
    tokens = Tokens(
        torch.ones(5, 2),
        torch.tensor([TEXT, IMAGE, TEXT, TEXT, TEXT]),
        torch.tensor([0, 0, 0, 0, 1]),
        group,
        torch.full((5, 3), -1),
    )
    found = text_order(tokens, reach=2)
    assert edges(found) == [(0, 2, 1), (0, 3, 0), (2, 0, 2), (2, 3, 1), (3, 0, 3), (3, 2, 2)]
    assert text_order(tokens, reach=1).degree == 2
    with pytest.raises(ValueError, match="reach is 0, expected at least 1"):
        text_order(tokens, reach=0)


def test_text_image_takes_the_most_relevant_both_ways():
    tokens = make_image([[1.0, 0], [0, 1], [1, 1]], text=[[1.0, 0.1], [0.1, 1]])
    found = text_image(tokens, from_text=1, from_image=2)
    assert found.degree == 2
    assert edges(found) == [(0, 3, 1), (1, 4, 1), (2, 3, 1), (2, 4, 1), (3, 0, 0), (3, 2, 0), (4, 1, 0)]
    assert torch.allclose(found.likeness[0, 0], torch.tensor(1 / 1.01**0.5))


def test_text_image_keeps_to_the_sequence():
    tokens = make_tokens([[(2, 2)], [(1, 2), (1, 3)]], num_text=2)
    index, _, relation = text_image(tokens, from_text=5, from_image=9).to_edges()
    assert torch.equal(tokens.sequence[index[0]], tokens.sequence[index[1]])
    assert torch.equal(tokens.candidates[index[1]], relation == 0)
    assert torch.equal(tokens.candidates[index[0]], relation == 1)
    assert index.shape[1] == 2 * (4 * 2 + 5 * 2)


def test_text_image_where_one_is_missing():
    tokens = make_tokens([[(1, 2)], [(1, 2)]], num_text=0)
    assert not text_image(tokens).valid.any()


def test_join_shifts_relations():
    first = Neighbors(torch.zeros(1, 2).long(), torch.ones(1, 2), torch.ones(1, 2).bool(), torch.tensor([[0, 2]]), 3)
    second = Neighbors(torch.zeros(1, 1).long(), torch.zeros(1, 1), torch.zeros(1, 1).bool(), torch.tensor([[1]]), 4)
    joined = join(first, second, first)
    assert joined.relation.tolist() == [[0, 2, 4, 7, 9]] and joined.relations == 10
    assert joined.valid.tolist() == [[True, True, False, True, True]] and joined.degree == 5


def test_to_edges_leaves_out_what_is_masked():
    neighbors = Neighbors(
        torch.tensor([[1, 0], [0, 1]]),
        torch.tensor([[0.5, 0.0], [0.5, 0.0]]),
        torch.tensor([[True, False], [True, False]]),
        torch.tensor([[3, 9], [4, 9]]),
        10,
    )
    index, likeness, relation = neighbors.to_edges()
    assert index.tolist() == [[1, 0], [0, 1]] and likeness.tolist() == [0.5, 0.5] and relation.tolist() == [3, 4]


def test_two_sequences_together_equal_each_alone():
    tokens = make_tokens([[(3, 4)], [(2, 5), (1, 1)]])
    together = edges(token_graph(tokens))
    apart, start = [], 0
    for number in range(2):
        alone = tokens.select(torch.tensor([number]))
        apart += [(source + start, target + start, relation) for source, target, relation in edges(token_graph(alone))]
        start += len(alone)
    assert together == sorted(apart)


def test_no_reach_leaves_no_ring():
    tokens = make_image(torch.eye(9), columns=3)
    assert not grid_neighbors(tokens, reaches=()).valid.any()
    with pytest.raises(ValueError, match=r"reaches is \(1, 0\), expected distances of at least 1 patch"):
        grid_neighbors(tokens, reaches=(1, 0))
