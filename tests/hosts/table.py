"""The table of families and what they do, found by doing it: `python -m tests.hosts.table` writes it anew."""

from collections.abc import Callable
from typing import Any

import torch

from crtc import compressed
from crtc.hosts import encode, generate
from crtc.hosts.mass import check_attention
from crtc.readme import ROOT
from crtc.tokens import TOWER_SIGNALS
from tests.hosts.families import BUILDERS, ROWS, VID, Host, build
from tests.hosts.references import third

TABLE = "results/hosts/table.md"
WORDS = {
    "cls_attention": "[CLS] attention",
    "received_attention": "received attention",
    "keys": "keys",
    "features": "features",
}
HEAD = """## Models

One mechanism compresses the *inputs* of stock models of transformers; nothing of a model is patched. A model is
supported if its visual features take the place of placeholders; cross-attention (Mllama), encoder-decoders
(Florence-2), discrete image tokens (Emu3, Chameleon) and remote code are refused by name. Each row was found by
running a tiny random model of the family on a CPU (`python -m tests.hosts.table`), no real checkpoint: with all
tokens it says what the stock model says, a batch what its prompts say alone, and where `yes` stands, beams, a static
cache and a prompt read in chunks agree with plain decoding, and the next turn on the same cache reads only what is
new. Positions stay those of the full prompt. Signals and places (row and column) are what methods may need.

That is so from transformers 5.23 on. Before, stock models lose images when they read a prompt in chunks (refused here),
Gemma 3 and Ernie 4.5 VL mistake the columns of images that come with a later turn on the same cache, and Gemma 4 says
something else with a static one; before 5.20, Llama 4 has no static cache. The least is 5.19: before, beams get the
images of a prompt in the wrong order. The stock Llama 4 of 5.24.0 fails on every prompt.

| family | shown | mass | beams | static cache | chunks | next turn | signals | places |
|---|---|---|---|---|---|---|---|---|
"""
GREEDY = {"max_new_tokens": 4, "do_sample": False}


def table() -> str:
    """Heading and rows in Markdown."""
    rows: dict[str, list[str]] = {}
    for name in BUILDERS:
        host = build(name)
        label = type(host.model).__name__.removesuffix("ForConditionalGeneration").removesuffix("ForCausalLM")
        found = row(host)
        if label in rows:  # the same family shown something else
            rows[label][0] = ", ".join(dict.fromkeys([*rows[label][0].split(", "), *found[0].split(", ")]))
        rows.setdefault(label, found)
    lines = [f"| {label} | {' | '.join(cells)} |" for label, cells in sorted(rows.items(), key=lambda x: x[0].lower())]
    return HEAD + "\n".join(lines) + "\n"


@torch.no_grad()
def row(host: Host) -> list[str]:
    """Cells of one family."""
    model, inputs = host.model, host.inputs()
    encoded = encode(model, inputs, TOWER_SIGNALS)
    tokens, plan = encoded.tokens, third(encoded.tokens)
    shown = {"video" if picture.token == VID else "image" for picture in host.pictures}
    mass = "yes"
    try:
        check_attention(model)
    except ValueError:
        mass = f"no: {', '.join(sorted(set(model.config.text_config.layer_types) - {'full_attention'}))} layers"
    settings: dict[str, Any] = {"mass": mass == "yes", "positions": "keep"}

    def say(which: Any = encoded, what: Any = plan, **options: Any) -> torch.Tensor:
        answer: torch.Tensor = generate(which, what, **settings, **GREEDY, **options)
        return answer[:, -4:]

    def agrees(**options: Any) -> bool:
        told = {"return_dict_in_generate": True, "output_logits": True, **settings, **GREEDY}
        got, expected = (torch.stack(generate(encoded, plan, **told, **more).logits) for more in (options, {}))
        return bool((got - expected).abs().max() < 1e-4)

    plain = say()
    alone = [encode(model, host.inputs(rows=(one,))) for one in ROWS]
    agreed = [say(one, third(one.tokens)) for one in alone]
    assert torch.equal(plain, torch.cat(agreed))
    with compressed(model, "random", keep=1.0, mass=settings["mass"]):
        assert torch.equal(model.generate(**inputs, **GREEDY), stock(host))

    def beams() -> bool:
        told = {"return_dict_in_generate": True, "output_logits": True, **settings, **GREEDY}
        output = generate(encoded, plan, num_beams=2, **told)
        expected = torch.cat([say(one, third(one.tokens), num_beams=2) for one in alone])
        first = output.logits[0].unflatten(0, (len(ROWS), -1))
        seen = bool((first - first[:, :1]).abs().max() < 1e-4)  # the same images in the same order by all beams
        return seen and torch.equal(output.sequences[:, -4:], expected)

    def turn() -> bool:
        with compressed(model, "uniform_grid" if places else "random", keep=0.5, mass=settings["mass"]) as handle:
            first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
            ids = torch.cat([first.sequences, torch.tensor([[33, 44]] * 2)], 1)
            mask = torch.cat([inputs["attention_mask"], torch.ones(2, 6, dtype=torch.long)], 1)
            cache = first.past_key_values
            before = cache.get_seq_length()
            model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **GREEDY)
            return handle.turn is not None and cache.get_seq_length() == before + 6

    places = bool((tokens.grid[tokens.candidates] >= 0).all())
    signals = [word for name, word in WORDS.items() if name in tokens.signals.present]
    return [
        ", ".join(sorted(shown)),
        mass,
        tried(beams),
        tried(lambda: agrees(cache_implementation="static", disable_compile=True)),
        tried(lambda: agrees(prefill_chunk_size=2), otherwise="no: reads both ways"),
        tried(turn),
        ", ".join(signals) or "none",
        "yes" if places else "no",
    ]


def stock(host: Host) -> torch.Tensor:
    """What the model answers by itself."""
    answer: torch.Tensor = host.model.generate(**host.inputs(), **GREEDY)
    return answer


def tried(check: Callable[[], bool], otherwise: str = "no") -> str:
    """Whether something works; what the stock model cannot do either fails in its own code."""
    try:
        return "yes" if check() else otherwise
    except (ValueError, KeyError, RuntimeError, IndexError):
        return "not in stock"


if __name__ == "__main__":
    file = ROOT / TABLE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(table())
    print(f"wrote {file}")
