"""The glyph task: reproducible, split cleanly, and every answer follows from the scene."""

import re
from collections import Counter

import numpy as np
import pytest

from crtc.tasks.glyphs.photographs import PHOTOGRAPHS, SPLITS, digit_numbers, digits, photographs
from crtc.tasks.glyphs.questions import FAMILIES, ROUND, ask
from crtc.tasks.glyphs.scene import BYSTANDERS, COLORS, NUMBER, SHAPES, make_scene, plural, shape_mask
from crtc.tasks.glyphs.tokenizer import PROMPT, make_tokenizer
from crtc.tasks.picture import Glyphs


@pytest.fixture(scope="module")
def scenes():
    """Fifteen test scenes."""
    return [make_scene("test", 0, index) for index in range(15)]


@pytest.fixture(scope="module")
def asked(scenes):
    """Forty questions about each scene."""
    return [(scene, ask(scene, np.random.default_rng(index), 40)) for index, scene in enumerate(scenes)]


def test_the_same_index_is_the_same_scene(scenes):
    again, other = make_scene("test", 0, 3), make_scene("test", 1, 3)
    assert np.array_equal(again.image, scenes[3].image) and again.things == scenes[3].things
    assert np.array_equal(again.labels.kind, scenes[3].labels.kind)
    assert other.things != again.things
    assert make_scene("train", 0, 3).things != again.things


def test_scenes_are_576_patches(scenes):
    for scene in scenes:
        assert scene.image.shape == (192, 192, 3) and scene.image.dtype == np.uint8
        assert scene.labels.kind.size == 576
        assert 1 <= len(scene.things) <= 18


def test_splits_share_no_photograph_and_no_digit():
    names = [name for split in SPLITS for name in PHOTOGRAPHS[split]]
    assert len(names) == len(set(names)) == 18
    assert sorted(number for split in SPLITS for number in digit_numbers(split)) == list(range(1797))
    assert [len(digit_numbers(split)) for split in SPLITS] == [1497, 100, 200]
    for split in SPLITS:
        ink, values = digits(split)
        assert ink.shape == (len(values), 8, 8) and set(values.tolist()) == set(range(10))
        assert ink.min() == 0 and ink.max() == 1


def test_photographs_are_rgb_of_one_size():
    for photograph in photographs("test"):
        assert min(photograph.shape[:2]) == 300 and photograph.shape[2] == 3
        assert photograph.min() >= 0 and photograph.max() <= 1


def test_things_lie_inside_and_apart(scenes):
    for scene in scenes:
        cells = Counter()
        for thing in scene.things:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 192 and 0 <= top < bottom <= 192
            row, column, last_row, last_column = thing.cells
            assert row * 32 <= top and bottom <= (last_row + 1) * 32
            assert column * 32 <= left and right <= (last_column + 1) * 32
            cells.update(covered(thing))
            assert thing.color in COLORS and thing.kind in (*SHAPES, NUMBER)
            assert bool(thing.value) == (thing.kind == NUMBER)
        assert set(cells.values()) == {1}


def test_shape_masks_are_as_wide_as_asked():
    for kind in (*SHAPES, *BYSTANDERS):
        mask = shape_mask(kind, 16)
        assert mask.shape[1] == 16 and mask.min() >= 0 and mask.max() == 1
    assert shape_mask("bar", 16).shape[0] < 8
    with pytest.raises(ValueError, match="shape is 'spiral'"):
        shape_mask("spiral", 16)


def test_bystanders_stand_in_free_cells_and_nobody_asks_about_them():
    bare = make_scene("test", 0, 3, bystanders=(0.0, 0.0))
    full = make_scene("test", 0, 3, bystanders=(1.0, 1.0))
    assert bare.things == full.things and not (bare.labels.kind > 18).any()
    occupied = np.zeros((6, 6), dtype=bool)
    for first_row, first_column, last_row, last_column in (thing.cells for thing in full.things):
        occupied[first_row : last_row + 1, first_column : last_column + 1] = True
    stands = (full.labels.kind > 18).reshape(6, 4, 6, 4).any(axis=(1, 3))
    assert (stands == ~occupied).all()
    under_things = (full.labels.kind > 0) & (full.labels.kind <= 18)
    assert (full.labels.kind == bare.labels.kind)[under_things].all()
    assert (full.labels.shade[full.labels.kind != 0] == -100).all() and full.labels.shade.max() < 8


@pytest.mark.parametrize(("crowds", "each"), [((1.0, 0.0, 0.0), 1), ((0.0, 1.0, 0.0), 2), ((0.0, 0.0, 1.0), 4)])
def test_a_free_cell_holds_as_many_bystanders_as_asked(crowds, each):
    scene = make_scene("test", 0, 3, bystanders=(1.0, 1.0), crowds=crowds)
    free = np.ones((6, 6), dtype=bool)
    for first_row, first_column, last_row, last_column in (thing.cells for thing in scene.things):
        free[first_row : last_row + 1, first_column : last_column + 1] = False
    assert free.any() and set(scene.labels.middle.reshape(6, 4, 6, 4).sum(axis=(1, 3))[free]) == {each}


def things_of(scene, words):
    """Things called by `[colour] kind`."""
    return [t for t in scene.things if all(word in (t.color, t.kind, "the") for word in words.split())]


def only(found):
    """The one thing that a question means."""
    assert len(found) == 1
    return found[0]


def covered(thing):
    """The cells of a thing."""
    top, left, bottom, right = thing.cells
    return {(row, column) for row in range(top, bottom + 1) for column in range(left, right + 1)}


def beside(scene, direction, thing):
    """Things in a cell that touches `thing` on that side."""
    down, right = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}[direction]
    near = {(row + down, column + right) for row, column in covered(thing)}
    return [other for other in scene.things if other is not thing and covered(other) & near]


def solve(scene, text):
    """The answer worked out from the words of the question, and the things that it rests on."""
    where = "left of|right of|above|below"
    if found := re.fullmatch(r"what color is the (\w+)\?", text):
        thing = only(things_of(scene, found[1]))
        return thing.color, [thing]
    if found := re.fullmatch(r"what shape is (\w+)\?", text):
        thing = only([t for t in things_of(scene, found[1]) if t.kind != NUMBER])
        return thing.kind, [thing]
    if found := re.fullmatch(r"what is the (\w+) number\?", text):
        thing = only(things_of(scene, f"{found[1]} number"))
        return thing.value, [thing]
    if found := re.fullmatch(r"how many (\w+) things\?|how many (\w+)\?", text):
        kinds = {plural(kind): kind for kind in (*SHAPES, NUMBER)}
        things = things_of(scene, found[1] or kinds[found[2]])
        return str(len(things)), things
    if found := re.fullmatch(r"is there a (\w+ \w+)\?", text):
        things = things_of(scene, found[1])
        return "yes" if things else "no", things
    if found := re.fullmatch(rf"is the (\w+ \w+) ({where}) the (\w+ \w+)\?", text):
        first, second = only(things_of(scene, found[1])), only(things_of(scene, found[3]))
        (x, y), (u, v) = first.center, second.center
        holds = {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[found[2]]
        return "yes" if holds else "no", [first, second]
    if found := re.fullmatch(r"is the (\w+ \w+) bigger than the (\w+ \w+)\?", text):
        first, second = only(things_of(scene, found[1])), only(things_of(scene, found[2]))
        return "yes" if first.size > second.size else "no", [first, second]
    if found := re.fullmatch(rf"what (color|shape|number) is ({where}) the (\w+ \w+)\?", text):
        thing = only(things_of(scene, found[3]))
        other = only(beside(scene, found[2], thing))
        return {"color": other.color, "shape": other.kind, "number": other.value}[found[1]], [thing, other]
    found = re.fullmatch(r"list the (\w+) things\.", text)
    things = sorted(things_of(scene, found[1]), key=lambda t: t.cells[:2])
    return ", ".join(t.value or t.kind for t in things), things


def test_answers_and_evidence_follow_from_the_scene(asked):
    for scene, questions in asked:
        for question in questions:
            answer, things = solve(scene, question.text)
            assert question.answer == answer, question.text
            assert sorted(question.evidence) == sorted(thing.box for thing in things), question.text


def test_every_family_occurs_with_more_than_one_answer(asked):
    answers = {}
    for _, questions in asked:
        for question in questions:
            answers.setdefault(question.family, set()).add(question.answer)
    assert set(answers) == set(FAMILIES)
    assert all(len(different) > 1 for different in answers.values())


def test_questions_are_not_asked_twice(asked):
    for _, questions in asked:
        texts = [question.text for question in questions[:20]]
        assert len(set(texts)) == 20


def test_families_take_turns():
    counts = Counter(q.family for index in range(10) for q in Glyphs(pictures=10)[index].questions)
    assert set(counts) == set(FAMILIES) and max(counts.values()) <= 4 * min(counts.values())
    glances, searches = ("color", "shape", "exist", "relation", "compare"), ("count", "twohop", "caption")
    assert max(counts[family] for family in glances) < min(counts[family] for family in searches)
    assert {family for family, turns in Counter(ROUND).items() if turns == 2} == {*searches, "digit", "number"}


def test_the_task_hands_out_pictures():
    task = Glyphs("calibration", pictures=2, questions=5, seed=7)
    assert len(task) == 2 and task.name == "glyphs-calibration"
    picture, again = task[1], Glyphs("calibration", pictures=2, questions=5, seed=7)[1]
    assert picture.image.size == (192, 192) and len(picture.questions) == 5
    assert picture.questions == again.questions and picture.image.tobytes() == again.image.tobytes()
    for question in picture.questions:
        for left, top, right, bottom in question.boxes:
            assert 0 <= left < right <= 192 and 0 <= top < bottom <= 192
    with pytest.raises(IndexError):
        task[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"split": "dev"}, "split is 'dev'"), ({"pictures": 0}, "pictures is 0"), ({"questions": 0}, "questions 0")],
)
def test_the_task_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        Glyphs(**settings)


def test_the_tokenizer_knows_every_word(asked):
    tokenizer = make_tokenizer()
    for _, questions in asked:
        for question in questions:
            for text in (question.text, question.answer):
                ids = tokenizer(text).input_ids
                assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_prompt_holds_one_image_token():
    tokenizer = make_tokenizer()
    ids = tokenizer(PROMPT.format(question="is there a red ring?")).input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 1
    assert tokenizer.unk_token_id not in ids
