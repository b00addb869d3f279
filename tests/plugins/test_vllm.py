"""The plug-in of vLLM as far as it goes without vLLM: its entry point, its configuration, and what it does to rows."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crtc
from crtc.compression import compress
from crtc.hosts import encode
from crtc.methods import KMeans, Learned, catalogue
from crtc.plugins import vllm as plugin
from crtc.plugins.serving import Serving, watched
from crtc.tokens import SIGNALS, Signals

ROOT = Path(crtc.__file__).parents[1]


def serving(**given: Any) -> Serving:
    return Serving.of(SimpleNamespace(crtc=given))


def test_entry_point_registers_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    module, _, name = points["crtc"].partition(":")
    assert getattr(import_module(module), name) is plugin.register
    registry: dict[str, str] = {}
    stand_in = ModuleType("vllm")
    stand_in.ModelRegistry = SimpleNamespace(register_model=registry.__setitem__)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    plugin.register()
    plugin.register()
    assert registry == {plugin.ARCHITECTURE: f"crtc.plugins.vllm_llava:{plugin.ARCHITECTURE}"}
    source = (ROOT / "crtc" / "plugins" / "vllm_llava.py").read_text()
    assert f"class {plugin.ARCHITECTURE}(" in source


def test_importing_the_entry_point_imports_nothing_heavy() -> None:
    code = (
        "import sys, crtc.plugins.vllm; print({'torch', 'transformers', 'torch_geometric', 'numba'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "set()\n"


def test_names_of_the_package_are_there_when_asked_for() -> None:
    assert crtc.compress is compress and crtc.catalogue is catalogue and crtc.Tokens.__module__ == "crtc.tokens"
    with pytest.raises(AttributeError, match="no attribute 'compresed'"):
        crtc.compresed  # noqa: B018


def test_configuration_makes_the_method() -> None:
    said = serving(method="k-means", count=64)
    assert isinstance(said.method, KMeans) and said.signals == []
    assert said.num_kept(576) == 64
    assert serving(method="kmeans", keep=0.25).num_kept(576) == 144
    assert serving(method="vision_zip", keep=0.001).signals == ["cls_attention", "keys"]
    assert serving(method="vision_zip", keep=0.001).num_kept(576) == 1
    folder = ROOT / "crtc" / "methods" / "glyphs" / "reinforced_scorer"
    for given in ({"method": "reinforced_scorer"}, {"scorer": str(folder)}):
        blind = serving(**given, settings={"question": False}, count=64)
        assert type(blind.method).__name__ == "ReinforcedScorer" and not blind.method.training


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"method": "kmeans"}, "keep is None and count is None, expected exactly one"),
        ({"method": "kmeans", "keep": 0.5, "count": 3}, "keep is 0.5 and count is 3, expected exactly one"),
        ({"method": "kmeans", "keep": 1.5}, "keep is 1.5, expected a fraction"),
        ({"method": "kmeans", "count": 0}, "count is 0, expected a whole number"),
        ({"method": "kmeans", "count": 2.5}, "count is 2.5, expected a whole number"),
        ({"method": "kmeans", "count": "64"}, "count is '64', expected a number"),
        ({"method": "kmeans", "keep": True}, "keep is True, expected a number"),
        ({"method": "no_such", "count": 9}, "no method is named 'no_such', expected one of "),
        ({}, "keep is None and count is None, expected exactly one"),
        ({"method": "kmeans", "scorer": "x", "count": 9}, "expected at most one of them"),
        ({"scorer": "nowhere", "count": 9}, "nowhere holds no readable scorer"),
        ({"method": "kmeans", "settings": {"seeds": 3}, "count": 9}, "kmeans cannot be made with {'seeds': 3}"),
        ({"method": "kmeans", "count": 9, "mass": True}, r"crtc holds \['mass'\], expected some of method, scorer"),
        ({"method": "mmtok", "count": 9}, "MMTok looks at the question, but vLLM encodes images without"),
        ({"method": "kmeans", "settings": 3, "count": 9}, "settings is 3, expected names and values"),
        ({"method": "pact", "count": 9}, "PACT acts inside the language model"),
        ({"method": "reinforced_scorer", "count": 9}, 'ReinforcedScorer looks .* or "settings": {"question": false}'),
    ],
)
def test_wrong_configuration_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        serving(**given)


def test_no_configuration_is_refused() -> None:
    for config in (SimpleNamespace(), SimpleNamespace(crtc="kmeans")):
        with pytest.raises(ValueError, match='expected hf_overrides with "crtc"'):
            Serving.of(config)


def test_more_than_an_image_has_is_refused() -> None:
    said = serving(method="norm", count=10)
    with pytest.raises(ValueError, match="count is 10, but a group has only 9 tokens"):
        said.num_kept(9)
    with pytest.raises(ValueError, match="count is 10, but a group has only 9 tokens"):
        said.shortened(torch.ones(1, 9, 4), Signals())
    with pytest.raises(ValueError, match="ClsAttention needs cls_attention"):
        serving(method="cls_attention", count=2).shortened(torch.ones(1, 9, 4), Signals())


def test_rows_are_chosen_by_image() -> None:
    rows = torch.tensor([[[1.0], [4.0], [2.0], [3.0]], [[9.0], [5.0], [7.0], [8.0]]])
    short = serving(method="norm", count=2).shortened(rows, Signals())
    assert torch.equal(short, torch.tensor([[[4.0], [3.0]], [[9.0], [8.0]]]))
    assert torch.equal(serving(method="norm", keep=1).shortened(rows, Signals()), rows)
    assert serving(method="norm", count=2).shortened(rows.bfloat16(), Signals()).dtype == torch.bfloat16


class Attention(nn.Module):
    """Stands for vLLM's: queries, keys and values of all heads side by side; the answer is another layer's."""

    def __init__(self, heads: int, scale: float):
        super().__init__()
        self.num_heads, self.scale = heads, scale

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return values


class Tower(nn.Module):
    """The names of vLLM's tower around the layers of a stock one."""

    def __init__(self, stock: Any, layers: int):
        super().__init__()
        self.stock = [stock]
        embeddings = nn.Module()
        if hasattr(stock.embeddings, "class_embedding"):
            embeddings.class_embedding = nn.Parameter(torch.zeros(1))
        first = stock.encoder.layers[0].self_attn
        parts = []
        for _ in range(layers):
            part = nn.Module()
            part.self_attn = nn.Module()
            part.self_attn.attn = Attention(first.num_heads, first.scale)
            parts.append(part)
        self.vision_model = nn.Module()
        self.vision_model.embeddings = embeddings
        self.vision_model.encoder = nn.Module()
        self.vision_model.encoder.layers = nn.ModuleList(parts)

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.stock[0](pixels, output_hidden_states=True).hidden_states
        for number, part in enumerate(self.vision_model.encoder.layers):
            layer = self.stock[0].encoder.layers[number]
            seen = layer.layer_norm1(states[number])
            part.self_attn.attn(*(getattr(layer.self_attn, f"{name}_proj")(seen) for name in "qkv"))
        return states[len(self.vision_model.encoder.layers)]


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "default"), ("clip", "full"), ("siglip", "full")])
@torch.no_grad()
def test_tower_tells_the_same_as_the_stock_one(
    make_llava: Callable[..., Any], make_prompts: Callable[..., dict[str, Any]], tower: str, strategy: str
) -> None:
    model = make_llava(tower=tower, strategy=strategy)
    inputs = make_prompts(rows=10 if strategy == "full" and tower == "clip" else 9)
    tokens = encode(model, inputs, SIGNALS).tokens
    watching = Tower(model.model.vision_tower, layers=2)  # the projector reads the last but one of three
    leading = int(strategy == "default")
    with watched(watching, model.model.multi_modal_projector, heads=2, depth=3) as seen:
        rows = model.model.multi_modal_projector(watching(inputs["pixel_values"])[:, leading:])
    signals = seen.signals()
    assert signals.present == tokens.signals.present
    for name in signals.present:
        assert torch.allclose(getattr(signals, name), getattr(tokens.signals, name)[tokens.candidates], atol=1e-6), name
    assert torch.allclose(rows.flatten(0, 1), tokens.x[tokens.candidates], atol=1e-6)
    assert not any(part._forward_pre_hooks for part in [*watching.modules(), *model.modules()])


@torch.no_grad()
def test_rows_are_those_of_compress(
    make_llava: Callable[..., Any], make_prompts: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    model, inputs = make_llava(), make_prompts()
    tokens = encode(model, inputs, SIGNALS).tokens
    rows = tokens.x[tokens.candidates].view(3, 9, -1)
    inside = {name: getattr(tokens.signals, name)[tokens.candidates] for name in tokens.signals.present}
    skipped = []
    for name, kind in catalogue().items():
        given = {"method": name}
        if issubclass(kind, Learned):  # those that ship are for another width
            kind.for_width(tokens.x.shape[1]).save_pretrained(tmp_path / name)
            given = {"scorer": str(tmp_path / name)}
        try:
            said = serving(**given, count=4)
        except ValueError:
            skipped.append(name)
            continue
        full = compress(model, inputs, said.method, count=4)
        expected = torch.cat(full["mm_encoder_outputs"]["image"].pooler_output).view(3, 4, -1)
        assert torch.equal(said.shortened(rows, Signals(**inside)), expected), name
    assert {"mmtok", "cdpruner", "reinforced_scorer"} <= set(skipped)
    assert len(skipped) < len(catalogue()) / 2


def test_heads_on_several_devices_are_refused(make_llava: Callable[..., Any]) -> None:
    model = make_llava()
    with (
        pytest.raises(ValueError, match="each device has 2 of 4 heads"),
        watched(Tower(model.model.vision_tower, 2), model.model.multi_modal_projector, heads=4, depth=3),
    ):
        pass
