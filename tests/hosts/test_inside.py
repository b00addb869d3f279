"""Dropping inside the language model: nothing changes where all stays, and to drop is to mask in the later layers."""

from contextlib import ExitStack, contextmanager

import pytest
import torch

from crtc import compress, compressed
from crtc.compression import inside_of
from crtc.hosts import encode, shorten
from crtc.hosts.inside import cut_inside
from crtc.hosts.layers import decoder_layers
from crtc.methods import DART, PACT, FastV, PyramidDrop, SparseVLM
from crtc.methods.method import keep_all
from tests.hosts.families import BROKEN, BUILDERS, build
from tests.hosts.references import prune
from tests.test_compression import state

WIDE = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "gemma3_narrow", "internvl", "smolvlm"]
SHORT = {"gemma3": 3, "gemma3_narrow": 3}
"""Hosts with another number of layers than 5."""
METHODS = [FastV, PyramidDrop, SparseVLM, DART, PACT]
WANTED = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}


def of(kind, depth=5):
    """A method that cuts in front of the last layers, behind the deepstack layers of every family."""
    if len(kind.shares) >= depth:
        pytest.skip(f"{kind.__name__} has {len(kind.shares)} stages, the host {depth} layers")
    return kind(layers=list(range(depth - len(kind.shares), depth)), matched=False)


class Broken(FastV):
    """Fails."""

    def score(self, tokens):
        """Fail."""
        raise RuntimeError("broken")


def host_of(name, attention="sdpa", dtype=torch.float64):
    return build(name, attention, dtype, SHORT.get(name, 5))


def uncut(encoded):
    return shorten(encoded, keep_all(encoded.tokens), mass=False, positions="keep")


@contextmanager
def masked_from(model, layer, columns):
    """From a layer on, columns of the prompts are masked; the stock model otherwise."""

    def before(module, args, kwargs):
        hidden, mask = args[0] if args else kwargs["hidden_states"], kwargs["attention_mask"]
        rows, width = hidden.shape[:2]
        if mask is None:
            mask = torch.ones(1, 1, width, width, dtype=torch.bool).tril()
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        seen = seen.expand(rows, 1, width, -1) & columns[:, None, None]
        return args, {
            **kwargs,
            "attention_mask": torch.zeros(seen.shape, dtype=hidden.dtype).masked_fill(
                ~seen, torch.finfo(hidden.dtype).min
            ),
        }

    with ExitStack() as stack:
        for module, _ in decoder_layers(model)[layer:]:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", WIDE)
@torch.no_grad()
def test_keeping_everything_changes_nothing(name, kind):
    host = host_of(name, dtype=torch.float32)
    inputs = host.inputs()
    expected = host.model.generate(**inputs, **WANTED)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    plain = host.model(**inputs, labels=labels)
    with compressed(host.model, of(kind, SHORT.get(name, 5)), keep=1.0) as handle:
        got = host.model.generate(**inputs, **WANTED)
        logits = host.model(**inputs, labels=labels)
    assert torch.equal(got.sequences, expected.sequences)
    assert torch.equal(torch.stack(got.logits), torch.stack(expected.logits))
    assert torch.equal(logits.logits, plain.logits) and torch.equal(logits.loss, plain.loss)
    assert handle.layer_equivalent.tolist() == handle.tokens.group_sizes.tolist()


@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"), [("sdpa", torch.float64, 1e-10), ("eager", torch.float32, 5e-5)]
)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", WIDE)
@torch.no_grad()
def test_dropping_is_masking_in_the_later_layers(name, side, attention, dtype, tolerance):
    host = host_of(name, attention, dtype)
    inputs = host.inputs(side=side, dtype=dtype)
    encoded = encode(host.model, inputs)
    plan, layer = prune(encoded.tokens), SHORT.get(name, 5) - 2
    row, column = encoded.tokens.sequence, encoded.column
    columns = inputs["attention_mask"].bool().clone()
    stays = ~encoded.tokens.candidates
    stays[plan.kept] = True
    columns[row[~stays], column[~stays]] = False
    with masked_from(host.model, layer, columns):
        expected = host.model(**uncut(encoded)).logits
    with cut_inside(encoded, [layer], lambda tokens, cut: plan, ()) as cuts:
        got = host.model(**uncut(encoded)).logits
    assert got.shape == expected.shape
    assert (got[columns] - expected[columns]).abs().max().item() <= tolerance
    whole, left = int(encoded.tokens.group_sizes[0]), int(plan.num_kept[0])
    assert cuts.counts[:, 0].tolist() == [*[whole] * layer, left, left]


@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("name", WIDE)
@torch.no_grad()
def test_generating_equals_teacher_forcing_and_a_batch_its_rows(name, kind, mass):
    host = host_of(name)
    inputs = host.inputs(dtype=torch.float64)
    length = inputs["input_ids"].shape[1]
    with compressed(host.model, of(kind, SHORT.get(name, 5)), keep=0.4, mass=mass) as handle:
        told = host.model.generate(**inputs, **WANTED)
        fresh = host.model.generate(**inputs, **WANTED, use_cache=False)
        counts = handle.counts
    assert torch.equal(told.sequences[:, :length], inputs["input_ids"])
    assert torch.equal(fresh.sequences, told.sequences)
    difference = (torch.stack(fresh.logits) - torch.stack(told.logits)).abs().max().item()
    assert difference <= 1e-10
    assert int(counts[-1].sum()) < int(counts[0].sum())
    first = 0
    for number in range(2):
        alone = host.inputs(rows=[(0,), (1, 2)][number : number + 1], dtype=torch.float64)
        with compressed(host.model, of(kind, SHORT.get(name, 5)), keep=0.4, mass=mass) as single:
            one = host.model.generate(**alone, **WANTED)
        groups = single.counts.shape[1]
        assert torch.equal(single.counts, counts[:, first : first + groups])
        first += groups
        assert torch.equal(one.sequences[:, -5:], told.sequences[number : number + 1, -5:])
        assert (torch.stack(one.logits)[:, 0] - torch.stack(told.logits)[:, number]).abs().max().item() <= 1e-10


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static"}], ids=["beams", "static"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_ways_to_generate(name, options):
    host = host_of(name)
    inputs = host.inputs(dtype=torch.float64)
    with compressed(host.model, of(FastV), keep=0.4):
        together = host.model.generate(**inputs, max_new_tokens=5, **options)
        without = host.model.generate(**inputs, max_new_tokens=5, **{**options, "use_cache": False})\
            if "num_beams" in options else host.model.generate(**inputs, max_new_tokens=5)  # fmt: skip
    assert torch.equal(together, without)


@torch.no_grad()
def test_answers_are_not_seen():
    """Teacher-forced answers behind the prompts change neither the choice nor its logits."""
    host = host_of("llava")
    inputs = host.inputs(rows=[(0,)], dtype=torch.float64)
    with compressed(host.model, of(FastV), keep=0.3, mass=False):
        told = host.model.generate(**inputs, **WANTED)
    ids = told.sequences[:, :-1]
    longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    encoded = encode(host.model, longer)
    seen = encoded.column < inputs["input_ids"].shape[1]
    with inside_of(encoded, of(FastV), keep=0.3, seen=seen):
        forced = host.model(**uncut(encoded)).logits[0, -5:]
    difference = (forced - torch.stack(told.logits)[:, 0]).abs().max().item()
    assert difference <= 1e-6  # `generate` tells its logits in float32


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_nothing_is_left(name):
    host = host_of(name, dtype=torch.float32)
    inputs = host.inputs()
    before = state(host.model)
    for kind in (Broken, FastV):
        for call in (lambda: host.model.generate(**inputs, max_new_tokens=2), lambda: host.model(**inputs)):
            with ExitStack() as stack:
                if kind is Broken:
                    stack.enter_context(pytest.raises(RuntimeError, match="broken"))
                stack.enter_context(compressed(host.model, of(kind, SHORT.get(name, 5)), keep=0.5))
                call()
            assert state(host.model) == before


def test_matched_counts_reach_the_handle():
    host = host_of("llava")
    inputs = host.inputs(dtype=torch.float64)
    with compressed(host.model, FastV(layers=[2]), count=24) as handle, torch.no_grad():
        host.model(**inputs)
    assert handle.counts.tolist() == [[36] * 3, [36] * 3, [16] * 3, [16] * 3, [16] * 3]
    assert handle.layer_equivalent.tolist() == [24.0] * 3
    assert handle.plan.num_kept.tolist() == [16] * 3
    with compressed(host.model, "random", count=24) as handle, torch.no_grad():
        host.model(**inputs)
    assert handle.layer_equivalent.tolist() == [24.0] * 3


def test_what_cannot_be_done_is_said():
    host = host_of("llava")
    inputs = host.inputs(dtype=torch.float64)
    with (
        compressed(host.model, FastV(layers=[2]), count=10),
        pytest.raises(ValueError, match=r"target of group 0 is 10 .* between 15\.0"),
    ):
        host.model(**inputs)
    with (
        pytest.raises(ValueError, match="positions is 'repack', but FastV"),
        compressed(host.model, "fastv", count=20, positions="repack"),
    ):
        pass
    with pytest.raises(ValueError, match="FastV acts inside the language model, expected it in `compressed`"):
        compress(host.model, inputs, "fastv", count=20)
    deep = host_of("qwen3_vl", dtype=torch.float32)
    with compressed(deep.model, FastV(layers=[1], matched=False), keep=0.5), pytest.raises(ValueError, match="layer 1"):
        deep.model(**deep.inputs())
    for name in ("qwen3_5", "gemma4"):
        other = build(name)
        with pytest.raises(ValueError, match=type(other.model).__name__), compressed(other.model, "fastv", keep=0.5):
            pass


def test_every_family_runs_or_says_why_not():
    refused = set()
    for name in BUILDERS:
        try:
            decoder_layers(build(name).model)
        except ValueError:
            refused.add(name)
    assert refused == {"gemma4", "llama4", "qwen3_5", "lfm2_vl"} - BROKEN
