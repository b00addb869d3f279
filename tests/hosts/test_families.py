"""Every family, one contract: keeping all changes nothing, pruning is masking, merging is what one would do by hand."""

import pytest
import torch

from crtc import compressed
from crtc.hosts import columns, encode, shorten
from crtc.hosts.family import own_positions, turns_in_space
from crtc.hosts.visual import PIXELS
from crtc.methods import Random
from crtc.methods.method import keep_all
from tests.hosts.families import BROKEN, BUILDERS, ROWS, build
from tests.hosts.references import merged_by_hand, prune, repacked, third

FAMILIES = sorted(BUILDERS)
RECURRENT = {"qwen3_5", "lfm2_vl"}
"""Layers that carry a state over masked columns too: a shorter prompt is not a masked one."""
NARROW = {"gemma3_narrow"}
"""The window counts the tokens that are left, so that it reaches farther back than in the masked prompt."""
ROUNDED = {"llama4": 1e-6, "qwen3_5": 1e-5}
"""Families that rotate, or run through their states, in float32 even when their weights are float64."""
EXACT = ("sdpa", torch.float64, 1e-10)
IN_FLOAT32 = ("eager", torch.float32, 5e-5)
WANTED = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}


def takes_mass(name: str) -> bool:
    return name not in RECURRENT


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_keeping_everything_changes_nothing(name, attention):
    host = build(name, attention)
    inputs = host.inputs()
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    encoded = encode(host.model, inputs)
    expected = host.model(**inputs)
    for positions in ("keep", "repack"):
        short = shorten(encoded, keep_all(encoded.tokens), mass=takes_mass(name), positions=positions)
        got = host.model(**short)
        assert torch.equal(got.logits, expected.logits), positions
        assert torch.equal(got.loss, expected.loss), positions
    inputs.pop("labels")
    told = host.model.generate(**inputs, **WANTED)
    with compressed(host.model, Random(), keep=1.0, mass=takes_mass(name)):
        kept = host.model.generate(**inputs, **WANTED)
    assert torch.equal(kept.sequences, told.sequences)
    assert torch.equal(torch.stack(kept.logits), torch.stack(told.logits))


@pytest.mark.parametrize(
    ("side", "attention", "dtype", "tolerance"),
    [("left", *EXACT), ("right", *EXACT), ("right", *IN_FLOAT32)],
    ids=["left", "right", "eager"],
)
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - RECURRENT - NARROW))
@torch.no_grad()
def test_pruning_is_masking(name, side, attention, dtype, tolerance):
    """Prompts with dropped columns masked, positions unchanged; rows of the batch keep different numbers."""
    host = build(name, attention, dtype)
    inputs = host.inputs(side=side, dtype=dtype)
    encoded = encode(host.model, inputs)
    plan = prune(encoded.tokens)
    order = columns(encoded, plan)
    row, short = (order >= 0).nonzero(as_tuple=True)
    stays = torch.zeros_like(inputs["attention_mask"])
    stays[row, order[row, short]] = 1
    if turns_in_space(host.model):
        position = own_positions(host.model, inputs, inputs["attention_mask"])
    else:
        position = torch.arange(stays.shape[1]).expand_as(stays)
    if name == "paligemma":  # a plain call counts from one
        position = position + 1
    expected = host.model(**{**inputs, "attention_mask": stays, "position_ids": position}).logits
    got = host.model(**shorten(encoded, plan, mass=False, positions="keep")).logits
    difference = (got[row, short] - expected[row, order[row, short]]).abs().max().item()
    assert difference <= max(tolerance, ROUNDED.get(name, 0))


@pytest.mark.parametrize("positions", ["keep", "repack"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_merging_equals_embeddings_built_by_hand(name, positions):
    host = build(name, dtype=torch.float64)
    inputs = host.inputs(dtype=torch.float64)
    encoded = encode(host.model, inputs)
    plan, mask = third(encoded.tokens), inputs["attention_mask"]
    order = columns(encoded, plan)
    got = host.model(**shorten(encoded, plan, mass=False, positions=positions)).logits
    if turns_in_space(host.model):
        full = own_positions(host.model, inputs, mask)[-3:]
    else:
        full = torch.arange(mask.shape[1]).expand_as(mask)[None] + (name == "paligemma")
    if positions == "repack":
        kept = torch.zeros_like(mask, dtype=torch.bool)
        row, short = (order >= 0).nonzero(as_tuple=True)
        kept[row, order[row, short]] = True
        full = repacked(full, mask, kept)
        if len(full) == 1:  # the model numbers columns, padding included
            full = full - full.where(kept, full.max()).amin(-1, keepdim=True)
            full = full + ((order < 0).sum(1) + (name == "paligemma"))[None, :, None]
    for row in range(len(ROWS)):
        own = full if len(full) == 3 else full[0]
        expected = merged_by_hand(host.model, inputs, encoded, plan, own, row)
        difference = (got[row, order[row] >= 0] - expected).abs().max().item()
        assert difference <= ROUNDED.get(name, 1e-10)


@pytest.mark.parametrize(
    "name", sorted({"llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "granite4_vision", "llama4"} - BROKEN)
)
@torch.no_grad()
def test_one_image_for_many_prompts(name):
    """Encoded once, asked about twice, a third image between."""
    host = build(name)
    repeated = host.inputs(rows=((1,), (0,), (1,)))
    once = {**repeated, **host.look(((0, 1),))}
    image_of = torch.tensor([1, 0, 1])
    ours, theirs = encode(host.model, once, image_of=image_of), encode(host.model, repeated)
    torch.testing.assert_close(ours.tokens.x, theirs.tokens.x, atol=1e-5, rtol=0)
    assert torch.equal(ours.tokens.grid, theirs.tokens.grid)
    got, expected = (
        host.model(**shorten(one, third(one.tokens), mass=True, positions="keep")).logits for one in (ours, theirs)
    )
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_pixels_by_either_of_their_names():
    """The processor of Fuyu has another one than its feature function; two turns, each with a picture."""
    host = build("fuyu")
    (patches,), (more,) = (host.look(((picture,),)).values() for picture in (0, 1))
    text, asked = (
        {name: host.inputs(rows=((one,),))[name] for name in ("input_ids", "attention_mask")} for one in (0, 1)
    )
    said = []
    for name in PIXELS:
        with compressed(host.model, Random(), keep=0.5):
            first = host.model.generate(**text, **{name: patches}, **WANTED)
            ids = torch.cat([first.sequences, asked["input_ids"]], 1)
            told = {"input_ids": ids, "past_key_values": first.past_key_values, name: more}
            said.append(host.model.generate(**told, **WANTED))
    assert torch.equal(*(torch.stack(one.logits) for one in said))


@torch.no_grad()
def test_every_tensor_with_a_column_per_token_is_shortened():
    host = build("qwen3_vl_mixed")
    inputs = host.inputs()
    ids = inputs["input_ids"]
    encoded = encode(host.model, {**inputs, "labels": ids, "channels": torch.stack([ids, -ids, 2 * ids])})
    plan = prune(encoded.tokens)
    short, order = shorten(encoded, plan, mass=False, positions="keep"), columns(encoded, plan)
    inside, expected = order >= 0, ids.gather(1, order.clamp(min=0))
    assert torch.equal(short["input_ids"][inside], expected[inside])
    assert torch.equal(short["labels"], expected.masked_fill(~inside, -100))
    assert torch.equal(short["channels"], torch.stack([expected, -expected, 2 * expected]).masked_fill(~inside, 0))
    kinds = inputs["mm_token_type_ids"].gather(1, order.clamp(min=0)).masked_fill(~inside, 0)
    assert torch.equal(short["mm_token_type_ids"], kinds) and set(kinds.flatten().tolist()) == {0, 1, 2}
    assert short["position_ids"].shape == (4, *order.shape)
