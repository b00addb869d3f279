"""The LLaVA adapter: what it captures, how it lays prompts out, and that a shorter prompt is what it claims to be."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from crtc.hosts import columns, encode, generate, shorten
from crtc.merging import make_plan
from crtc.methods import Random
from crtc.methods.method import keep_all
from crtc.tokens import DROPPED, TOWER_SIGNALS, Groups, Plan, apply

IMAGE_ID = 90
POSITIONS = ["repack", "keep"]
EXACT = ("sdpa", torch.float64, 1e-10)
ROUNDED = ("eager", torch.float32, 1e-5)  # stock eager attention takes every softmax in float32


def prune(tokens, counts):
    """Random pruning, `counts[g]` tokens of group g."""
    return Random(3)(tokens, torch.as_tensor(counts))


def average(tokens, number):
    """Every group's token j joins token j % number, shares in float64."""
    groups = Groups.of(tokens)
    owner = (torch.arange(groups.valid.shape[1]) % number).expand_as(groups.index).masked_fill(~groups.valid, DROPPED)
    size = torch.bincount(owner[0])
    return make_plan(tokens, groups, owner, 1 / size.double()[owner])


def test_tokens_lie_as_in_the_prompt(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    encoded = encode(model, inputs)
    tokens = encoded.tokens
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert torch.bincount(tokens.sequence).tolist() == lengths
    assert tokens.group_sizes.tolist() == [9, 9, 9]
    assert tokens.group[:3].tolist() == [-1, -1, -1] and tokens.kind[2:5].tolist() == [0, 1, 1]
    assert tokens.grid[3:12].tolist() == [[0, row, column] for row in range(3) for column in range(3)]
    assert torch.equal(encoded.column[: lengths[0]], torch.arange(inputs["input_ids"].shape[1])[-lengths[0] :])
    rows = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    assert torch.equal(tokens.x[tokens.candidates], torch.cat(rows))
    text = model.get_input_embeddings()(inputs["input_ids"][0, -6:])
    assert torch.equal(tokens.x[lengths[0] - 6 : lengths[0]], text)


@pytest.mark.parametrize("feature_layer", [-2, -1, 1])
def test_signals_equal_eager_attentions(make_llava, make_prompts, feature_layer):
    inputs = make_prompts()
    tokens = encode(make_llava(feature_layer=feature_layer), inputs, TOWER_SIGNALS).tokens
    eager = make_llava(attention="eager", feature_layer=feature_layer)
    tower = eager.model.vision_tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    layer = (feature_layer if feature_layer > 0 else 4 + feature_layer) - 1
    attention = tower.attentions[layer].mean(1)
    inside = tokens.candidates
    signals = tokens.signals
    torch.testing.assert_close(signals.cls_attention[inside], attention[:, 0, 1:].flatten(), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        signals.received_attention[inside], attention.mean(1)[:, 1:].flatten(), atol=1e-6, rtol=0
    )
    shallow = tower.attentions[0].mean(1).mean(1)[:, 1:]  # layer 1 of 3, as 9 of 24
    torch.testing.assert_close(signals.shallow_attention[inside], shallow.flatten(), atol=1e-6, rtol=0)
    state = tower.hidden_states[feature_layer][:, 1:]
    torch.testing.assert_close(signals.features[inside], state.flatten(0, 1), atol=1e-5, rtol=0)
    attending = eager.model.vision_tower.encoder.layers[layer]
    keys = attending.self_attn.k_proj(attending.layer_norm1(tower.hidden_states[layer]))[:, 1:]
    torch.testing.assert_close(
        signals.keys[inside], keys.unflatten(-1, (2, 8)).mean(2).flatten(0, 1), atol=1e-5, rtol=0
    )
    for name in TOWER_SIGNALS:
        assert not getattr(signals, name)[~inside].any()


def test_tower_without_cls(make_llava, make_prompts):
    model = make_llava(tower="siglip", strategy="full", feature_layer=-1)
    signals = encode(model, make_prompts(), TOWER_SIGNALS).tokens.signals
    assert signals.present == {"received_attention", "shallow_attention", "keys", "features"}
    assert signals.received_attention.view(-1)[3:12].sum().item() == pytest.approx(1, abs=1e-5)


def test_cls_kept_as_a_token_has_no_place(make_llava, make_prompts):
    tokens = encode(make_llava(strategy="full"), make_prompts(rows=10), ["cls_attention"]).tokens
    assert tokens.group_sizes.tolist() == [10, 10, 10]
    assert tokens.grid[3:5].tolist() == [[-1, -1, -1], [0, 0, 0]]
    assert tokens.signals.cls_attention[3:13].sum().item() == pytest.approx(1, abs=1e-5)


def test_one_image_for_many_prompts(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts((1, 2))
    shared = {**inputs, "pixel_values": inputs["pixel_values"][:2]}
    repeated = {**inputs, "pixel_values": inputs["pixel_values"][[1, 0, 1]]}
    image_of = torch.tensor([1, 0, 1])
    ours, theirs = encode(model, shared, TOWER_SIGNALS, image_of).tokens, encode(model, repeated, TOWER_SIGNALS).tokens
    torch.testing.assert_close(ours.x, theirs.x)
    for name in TOWER_SIGNALS:
        torch.testing.assert_close(getattr(ours.signals, name), getattr(theirs.signals, name))
    with pytest.raises(ValueError, match="image_of is"):
        encode(model, shared, image_of=torch.tensor([1, 0, 2]))


def test_encoded_images_are_taken(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    output = model.model.get_image_features(inputs["pixel_values"])
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    tokens = encode(model, {**given, "mm_encoder_outputs": {"image": output}}, TOWER_SIGNALS).tokens
    assert torch.equal(tokens.x, encode(model, inputs).tokens.x) and not tokens.signals.present


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mass", [False, True])
def test_keeping_everything_changes_nothing(make_llava, make_prompts, side, attention, positions, mass):
    model, inputs = make_llava(attention=attention), make_prompts(side=side)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    encoded = encode(model, inputs)
    short = shorten(encoded, keep_all(encoded.tokens), mass=mass, positions=positions)
    with torch.no_grad():
        expected, got = model(**inputs), model(**short)
    assert torch.equal(got.logits, expected.logits) and torch.equal(got.loss, expected.loss)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("attention", "dtype", "tolerance"), [EXACT, ROUNDED])
def test_pruning_is_masking(make_llava, make_prompts, side, attention, dtype, tolerance):
    """Rows keep different counts: 4 of 9, and 2 and 7 of 9."""
    model = make_llava(attention=attention, dtype=dtype)
    inputs = make_prompts(side=side, dtype=dtype)
    encoded = encode(model, inputs)
    plan = prune(encoded.tokens, [4, 2, 7])
    order = columns(encoded, plan)
    stays = torch.zeros_like(inputs["attention_mask"])
    row, short = (order >= 0).nonzero(as_tuple=True)
    stays[row, order[row, short]] = 1
    assert stays.sum(1).tolist() == (inputs["attention_mask"].sum(1) - torch.tensor([5, 9])).tolist()
    with torch.no_grad():
        length = stays.shape[1]
        position = torch.arange(length).expand_as(stays)
        expected = model(**{**inputs, "attention_mask": stays}, position_ids=position).logits
        got = model(**shorten(encoded, plan, mass=False, positions="keep")).logits
    torch.testing.assert_close(got[row, short], expected[row, order[row, short]], atol=tolerance, rtol=0)


@pytest.mark.parametrize("positions", POSITIONS)
def test_merging_equals_embeddings_built_by_hand(make_llava, make_prompts, positions):
    model, inputs = make_llava(dtype=torch.float64), make_prompts(side="right", dtype=torch.float64)
    encoded = encode(model, inputs)
    tokens, plan = encoded.tokens, average(encoded.tokens, 4)
    with torch.no_grad():
        got = model(**shorten(encoded, plan, mass=False, positions=positions)).logits
        for row in range(2):
            embeds, place = [], []
            for column, token in enumerate((tokens.sequence == row).nonzero()[:, 0].tolist()):
                if tokens.group[token] < 0:
                    embeds.append(tokens.x[token])
                else:
                    first = int((tokens.group == tokens.group[token]).nonzero()[0, 0])
                    if token - first >= 4:
                        continue
                    embeds.append(tokens.x[first : first + 9][token - first :: 4].mean(0))
                place.append(column if positions == "keep" else len(place))
            full = torch.stack(embeds)[None]
            mask = torch.ones(full.shape[:2])
            expected = model(inputs_embeds=full, attention_mask=mask, position_ids=torch.tensor([place])).logits[0]
            torch.testing.assert_close(got[row, : len(expected)], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mass", [False, True])
def test_batch_equals_singles(make_llava, make_prompts, side, positions, mass):
    model, inputs = make_llava(dtype=torch.float64), make_prompts(side=side, dtype=torch.float64)
    pixels = inputs["pixel_values"].split([1, 2])
    if positions == "keep":
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    encoded = encode(model, inputs)
    plan = average(encoded.tokens, 2)
    order = columns(encoded, plan)
    # the stock model numbers left padding too, and its rotation tables are float32
    tolerance = 5e-6 if (side, positions) == ("left", "repack") else 1e-10
    with torch.no_grad():
        together = model(**shorten(encoded, plan, mass=mass, positions=positions)).logits
        for row in range(2):
            ids = inputs["input_ids"][row : row + 1, inputs["attention_mask"][row].bool()]
            alone = encode(model, {"input_ids": ids, "pixel_values": pixels[row]})
            logits = model(**shorten(alone, average(alone.tokens, 2), mass=mass, positions=positions)).logits[0]
            torch.testing.assert_close(together[row, order[row] >= 0], logits, atol=tolerance, rtol=0)


def test_a_row_without_image_goes_along(make_llava, make_prompts):
    model, inputs = make_llava(dtype=torch.float64), make_prompts((0, 1), side="right", dtype=torch.float64)
    encoded = encode(model, inputs)
    plan = prune(encoded.tokens, [3])
    with torch.no_grad():
        got = model(**shorten(encoded, plan, mass=False, positions="repack")).logits
        text = inputs["input_ids"][:1, inputs["attention_mask"][0].bool()]
        torch.testing.assert_close(got[0, : text.shape[1]], model(input_ids=text).logits[0], atol=1e-10, rtol=0)


def test_labels_and_ids_are_shortened_alike(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    labels = torch.arange(inputs["input_ids"].numel()).view_as(inputs["input_ids"])
    encoded = encode(model, {**inputs, "labels": labels})
    plan = prune(encoded.tokens, [1, 2, 3])
    short, order = shorten(encoded, plan, mass=False, positions="keep"), columns(encoded, plan)
    assert [(row >= 0).sum().item() for row in order] == (
        inputs["attention_mask"].sum(1) - torch.tensor([8, 13])
    ).tolist()
    assert (short["input_ids"] == IMAGE_ID).sum(1).tolist() == [1, 5]
    assert torch.equal(short["attention_mask"].bool(), order >= 0)
    inside = order >= 0
    assert torch.equal(short["labels"][inside], labels.gather(1, order.clamp(min=0))[inside])
    assert (short["labels"][~inside] == -100).all() and (short["input_ids"][~inside] == 0).all()
    assert torch.equal(short["position_ids"][inside], order[inside])


@pytest.mark.parametrize("mass", [False, True])
def test_gradient_reaches_rows_and_weights(make_llava, make_prompts, mass):
    model, inputs = make_llava().requires_grad_(False), make_prompts()
    encoded = encode(model, {**inputs, "labels": inputs["input_ids"]})
    encoded.tokens.x.requires_grad_()
    plan = average(encoded.tokens, 3)
    weight, size = plan.weight.float().requires_grad_(), plan.size.clone().requires_grad_()
    soft = Plan(plan.kept, plan.slot, weight, size, plan.group)
    model(**shorten(encoded, soft, mass=mass, positions="repack")).loss.backward()
    inside = encoded.tokens.candidates
    assert (encoded.tokens.x.grad[inside].norm(dim=1) > 0).all()
    assert (weight.grad[inside] != 0).all()
    assert (size.grad is not None and bool((size.grad != 0).all())) == mass
    assert all(parameter.grad is None for parameter in model.parameters())


def test_generate_on_encoded_prompts(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    encoded = encode(model, inputs)
    expected = model.generate(**inputs, max_new_tokens=5)
    got = generate(encoded, keep_all(encoded.tokens), mass=True, positions="repack", max_new_tokens=5)
    assert torch.equal(got, expected)
    limited = generate(
        encoded, prune(encoded.tokens, [2, 2, 2]), mass=True, positions="keep", max_length=expected.shape[1]
    )
    assert limited.shape == expected.shape


def test_refusals(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]

    def refused(match, change, host=model, **options):
        with pytest.raises(ValueError, match=match):
            encode(host, {**inputs, **change}, **options)

    text = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    refused("LlamaForCausalLM is not supported", {}, text)
    refused("input_ids is missing", {"input_ids": None})
    refused("at least one image", {"pixel_values": None})
    refused("at least one image", {"pixel_values": pixels[:0]})
    refused("at least one image", {"pixel_values": []})
    refused("NaN", {"pixel_values": pixels.masked_fill(pixels > 2, torch.nan)})
    refused("no image token 90", {"input_ids": ids.masked_fill(ids == IMAGE_ID, 5)})
    refused("27 image tokens in input_ids, 27 of them attended, but 2 images of 18 rows", {"pixel_values": pixels[:2]})
    refused("attention_mask is", {"attention_mask": mask[:, 1:]})
    refused("attention_mask is missing", {"attention_mask": None})
    refused("embeddings|no attention layer", {}, make_llava(feature_layer=0), signals=["keys"])
    encoded = encode(model, inputs)
    plan = keep_all(encoded.tokens)
    with pytest.raises((ValueError, TypeError), match="preserve"):  # run-time type checks may come first
        shorten(encoded, plan, mass=False, positions="preserve")
    with pytest.raises(ValueError, match="other tokens"):
        shorten(encoded, keep_all(encoded.tokens.select(torch.tensor([0]))), mass=False, positions="keep")


def test_hooks_go_after_an_exception(make_llava, make_prompts):
    model, inputs = make_llava(), make_prompts()

    def count():
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())

    encode(model, inputs)  # the stock tower keeps hooks of its own from its first run on
    before = count()
    encode(model, inputs, TOWER_SIGNALS)
    assert count() == before
    with pytest.raises(RuntimeError):
        encode(model, {**inputs, "pixel_values": inputs["pixel_values"][:, :2]}, TOWER_SIGNALS)
    assert count() == before


def test_rows_come_out_of_apply(make_llava, make_prompts):
    encoded = encode(make_llava(), make_prompts())
    plan = average(encoded.tokens, 4)
    images = shorten(encoded, plan, mass=False, positions="repack")["mm_encoder_outputs"]["image"].pooler_output
    assert [len(prompt) for prompt in images] == [4, 8]  # a part for every prompt, since beams repeat part after part
    assert torch.equal(torch.cat(images), apply(plan, encoded.tokens.x))
