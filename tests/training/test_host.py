"""Training of the host sees what the stock model will see: packed questions, windows, and positions."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from crtc.hosts import encode, shorten
from crtc.tasks.glyphs.questions import FAMILIES
from crtc.tasks.glyphs.scene import CELL, PATCH, Scene, make_scene, size_class
from crtc.tasks.glyphs.tokenizer import make_tokenizer
from crtc.tokens import Plan
from crtc.training.fit import trainer_for
from crtc.training.host import STAGES, HostTraining, make_host
from crtc.training.packing import GRID, POINTED, PackedScenes, pack

IGNORE = -100


@pytest.fixture(scope="module")
def module() -> HostTraining:
    training = HostTraining(steps=1).eval()
    training.host = make_host(hidden=64, vision_layers=2, text_layers=2).eval()
    return training


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene("train", 5, index) for index in range(2)]


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def packed(scenes: list[Scene], questions: int, seed: int = 0) -> PackedScenes:
    return pack(scenes, questions, np.random.default_rng(seed))


def test_answers_stand_behind_their_questions(scenes: list[Scene]) -> None:
    tokenizer = make_tokenizer()
    batch = packed(scenes, 4)
    assert len(batch) == 2 and batch.families.shape == (2, 4)
    for row in range(2):
        assert sorted(set(batch.segment[row].tolist()) - {-1}) == [0, 1, 2, 3]
        for number in range(4):
            inside = batch.segment[row] == number
            ids, targets = batch.ids[row, inside].tolist(), batch.targets[row, inside].tolist()
            assert batch.position[row, inside].tolist() == list(range(len(ids)))
            start = next(place for place, target in enumerate(targets) if target != IGNORE)
            answer = targets[start:]
            assert IGNORE not in answer and answer[-1] == tokenizer.eos_token_id
            assert ids[start + 1 :] == answer[:-1]  # each token is predicted from those before it
            assert tokenizer("ASSISTANT:").input_ids[-2:] == ids[start - 1 : start + 1]
        padding = batch.segment[row] == -1
        assert bool((batch.targets[row, padding] == IGNORE).all())


def test_a_question_does_not_see_another(module: HostTraining, scenes: list[Scene], no_grad: None) -> None:
    batch = packed(scenes[:1], 3)
    visual, _ = module.see(batch)
    before, _ = module.answer(batch, visual)
    ids = batch.ids.clone()
    ids[batch.segment == 1] = 7
    after, _ = module.answer(replace(batch, ids=ids), visual)
    others = batch.segment != 1
    assert torch.equal(before[others], after[others])
    assert float((before[~others] - after[~others]).abs().max()) > 1e-3


def test_an_answer_does_not_see_what_follows(module: HostTraining, scenes: list[Scene], no_grad: None) -> None:
    batch = packed(scenes[:1], 2)
    visual, _ = module.see(batch)
    ids = batch.ids.clone()
    ids[0, -1] = 7
    before, after = module.answer(batch, visual)[0], module.answer(replace(batch, ids=ids), visual)[0]
    assert torch.equal(before[0, :-1], after[0, :-1])


def test_questions_point_at_what_they_speak_of() -> None:
    """The labels of mentions and targets, against the words of the question and the things of the scene."""
    tokenizer = make_tokenizer()
    scene = make_scene("train", 5, 3)
    batch = packed([scene], 40)
    by_name = {f"▁{thing.color} ▁{thing.kind}": thing for thing in scene.things}
    checked = 0
    for number in range(40):
        inside = batch.segment[0] == number
        words = tokenizer.convert_ids_to_tokens(batch.ids[0, inside].tolist())
        for place, look in enumerate(batch.mention[0, inside].tolist()):
            thing = by_name.get(" ".join(words[place - 1 : place + 1]))
            if look[0] != IGNORE and thing is not None:
                x, y = thing.center
                assert look == [int(y) // PATCH, int(x) // PATCH, size_class(thing.size)]
                checked += 1
        target = batch.target[0, inside]
        start = int((batch.targets[0, inside] != IGNORE).nonzero()[0])
        pointed = target[:, 0] != IGNORE
        assert pointed.nonzero()[:, 0].tolist() == (
            [start] if list(FAMILIES)[batch.families[0, number]] in POINTED else []
        )
    assert checked > 10


def stock_logits(module: HostTraining, batch: PackedScenes, row: int, number: int) -> Tensor:
    """Logits at one question's tokens, as the stock model gives them for that question alone."""
    host = module.host
    text = batch.ids[row, batch.segment[row] == number]
    image = torch.full((GRID * GRID,), host.config.image_token_id)
    ids = torch.cat([module._prefix[0], image, text])[None]
    return host(input_ids=ids, pixel_values=batch.pixels[row : row + 1]).logits[0, -len(text) :]


def test_full_scenes_are_read_as_the_stock_model_reads_them(
    module: HostTraining, scenes: list[Scene], no_grad: None
) -> None:
    batch = packed(scenes, 3)
    assert torch.equal(batch.patch, torch.arange(GRID * GRID).expand(2, -1))
    visual, _ = module.see(batch)
    stock = module.host.model.get_image_features(pixel_values=batch.pixels, return_dict=True).pooler_output
    torch.testing.assert_close(visual, torch.stack(list(stock)), atol=1e-4, rtol=1e-4)
    logits, _ = module.answer(batch, visual)
    for row in range(2):
        for number in range(3):
            got = logits[row, batch.segment[row] == number]
            torch.testing.assert_close(got, stock_logits(module, batch, row, number), atol=1e-4, rtol=1e-4)


def test_windows_stand_where_they_were_cut(module: HostTraining, no_grad: None) -> None:
    scene = make_scene("train", 5, 0, cells=3, things=(2, 6))
    side = scene.image.shape[0] // PATCH
    assert side == 12
    corners = set()
    for seed in range(6):
        batch = packed([scene], 1, seed)
        grid = batch.patch.view(side, side)
        top, left = int(grid[0, 0]) // GRID, int(grid[0, 0]) % GRID
        corners.add((top, left))
        assert top % (CELL // PATCH) == 0 == left % (CELL // PATCH)
        places = torch.arange(side)
        assert torch.equal(grid, (top + places)[:, None] * GRID + left + places)
        assert max(top, left) <= GRID - side
    assert len(corners) > 3
    canvas = torch.zeros(1, 3, GRID * PATCH, GRID * PATCH)
    canvas[:, :, top * PATCH : (top + side) * PATCH, left * PATCH : (left + side) * PATCH] = batch.pixels
    tower = module.host.model.vision_tower
    embedded = tower.embeddings(canvas)  # the stock embeddings of a whole picture that holds the window
    states = torch.cat([embedded[:, :1], embedded[:, 1 + batch.patch[0]]], 1)
    states = tower.encoder(inputs_embeds=tower.pre_layrnorm(states)).last_hidden_state
    visual, summary = module.see(batch)
    torch.testing.assert_close(visual, module.host.model.multi_modal_projector(states[:, 1:]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(summary, tower.post_layernorm(states[:, 0]), atol=1e-5, rtol=1e-5)


def test_questions_about_a_window_keep_the_positions_of_whole_pictures(module: HostTraining, no_grad: None) -> None:
    """Answering about a window equals the stock model on a prompt whose other patches were pruned."""
    batch = packed([make_scene("train", 5, 0, cells=3, things=(2, 6))], 1, 3)
    visual, _ = module.see(batch)
    image = torch.full((GRID * GRID,), module.host.config.image_token_id)
    ids = torch.cat([module._prefix[0], image, batch.ids[0]])[None]
    encoded = encode(module.host, {"input_ids": ids, "pixel_values": torch.zeros(1, 3, GRID * PATCH, GRID * PATCH)})
    kept = encoded.tokens.candidates.nonzero()[:, 0][batch.patch[0]]
    slot = torch.full((len(encoded.tokens),), -1)
    slot[kept] = torch.arange(len(kept))
    plan = Plan(kept, slot, (slot >= 0).float(), torch.ones(len(kept)), encoded.tokens.group)
    short = shorten(encoded, plan, mass=False, positions="keep", rows=visual[0])
    expected = module.host(**short).logits[0, -batch.ids.shape[1] :]
    torch.testing.assert_close(module.answer(batch, visual)[0][0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stage", ["patches", "windows"])
def test_a_step_trains_and_is_counted(stage: str, tmp_path: Path) -> None:
    module = HostTraining(stage=stage, steps=1, batch_size=2, questions=2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = trainer_for(
        tmp_path,
        monitor=None,
        every=1,
        patience=1,
        track=False,
        accelerator="cpu",
        gradient_clip_val=None,
        limit_val_batches=0,
    )
    trainer.fit(module)
    assert module.done == 1
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert "host.model.vision_tower.encoder.layers.0.self_attn.q_proj.weight" in moved
    assert "heads.kind.weight" in moved
    assert ("host.lm_head.weight" in moved) == (stage == "windows")
    assert all(bool(torch.isfinite(value).all()) for value in module.state_dict().values())


def test_the_same_number_gives_the_same_batch() -> None:
    module = HostTraining(stage="patches", steps=3, batch_size=1, questions=1)
    whole = list(module.train_dataloader())
    module.done = 2
    rest = list(module.train_dataloader())
    assert len(whole) == 3 and len(rest) == 1
    assert torch.equal(whole[2].pixels, rest[0].pixels) and torch.equal(whole[2].ids, rest[0].ids)
    assert not torch.equal(whole[1].pixels, rest[0].pixels)


def test_no_crowds_in_training() -> None:
    """The card of the host says so, and its scores on crowds are those of a host that never saw any."""
    for stage in STAGES:
        assert HostTraining(stage=stage, steps=1)._shape()["crowds"][2] == 0


def test_unknown_stage() -> None:
    with pytest.raises(ValueError, match="'last'"):
        HostTraining(stage="last")
