"""The float type follows the machine: what a faked measurement says is what runs, and every command passes it on."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from crtc import cli, demo, dtypes
from crtc.dtypes import GAIN, fast_dtype, resolve, told
from crtc.hosts.stock import load_stock
from crtc.methods import KMeans
from crtc.plugins import chat
from crtc.plugins.recipe import Recipe
from crtc.training import fit as fitting

Machine = Callable[[float], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this a machine without a GPU whose CPU is so many times faster in bfloat16 than in float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def make(gain: float) -> None:
        monkeypatch.setattr(dtypes, "seconds", {torch.float32: gain, torch.bfloat16: 1.0}.__getitem__)

    return make


def gpu(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool, capability: tuple[int, int]) -> None:
    """Makes this a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 1")


@pytest.mark.parametrize(
    ("gain", "dtype"), [(0.1, torch.float32), (GAIN - 0.1, torch.float32), (GAIN, torch.bfloat16), (8, torch.bfloat16)]
)
def test_a_cpu_takes_what_it_is_faster_in(machine: Machine, gain: float, dtype: torch.dtype) -> None:
    machine(gain)
    for device in ("auto", "cpu", torch.device("cpu")):
        assert fast_dtype(device) == resolve("auto", device) == dtype
    assert told("cpu").startswith(f"{str(dtype).removeprefix('torch.')} on this CPU, where bfloat16 is ")
    assert ("is not faster" in told()) == (dtype == torch.float32)


def test_what_is_asked_for_is_taken_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "seconds", lambda dtype: pytest.fail("a product was timed"))
    found = {name: resolve(name, "cpu") for name in ("float32", "bfloat16", "float16")}
    assert found == {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize(
    ("bfloat16", "capability", "dtype"),
    [(True, (9, 0), torch.bfloat16), (False, (7, 5), torch.float16), (False, (6, 1), torch.float32)],
)
def test_a_gpu_takes_what_it_has_units_for(
    bfloat16: bool, capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(monkeypatch, bfloat16=bfloat16, capability=capability)
    assert fast_dtype() == fast_dtype("cuda:0") == dtype
    assert told().startswith(f"{str(dtype).removeprefix('torch.')} on Card 1")
    assert ("no units for bfloat16" in told()) == (not bfloat16)


def test_other_devices_run_in_float32() -> None:
    assert fast_dtype("meta") == torch.float32 and told("meta") == "float32 on meta"


@pytest.mark.parametrize("name", ["int8", "half", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"dtype is '{name}', expected one of auto, float32, bfloat16, float16"):
        resolve(name)


def test_devices_that_cannot_be_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="device 'abacus' cannot be used"):
        fast_dtype("abacus")

    def fail(device: torch.device) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "device", fail)
    with pytest.raises(ValueError, match="device 'cuda' cannot be used: Torch not compiled"):
        fast_dtype("cuda")


def test_a_process_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes.seconds.cache_clear()
    first = [dtypes.seconds(dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert min(first) > 0
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: pytest.fail("a product was timed again"))
    assert [dtypes.seconds(dtype) for dtype in (torch.float32, torch.bfloat16)] == first


@pytest.mark.parametrize("command", ["evaluate", "compress"])
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ([], torch.float32),
        (["--dtype", "auto"], torch.float32),
        (["--dtype", "bfloat16"], torch.bfloat16),
        (["--dtype", "float16"], torch.float16),
    ],
)
def test_commands_load_the_host_in_it_and_say_so(
    command: str,
    options: list[str],
    dtype: torch.dtype,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine(1.0)
    asked: list[torch.dtype] = []

    def load(name: str, *, dtype: torch.dtype, device: str) -> tuple[None, None]:
        asked.append(dtype)
        return None, None

    def stop(*given: Any) -> None:
        raise ValueError("far enough")

    for name, fake in {"load_host": load, "image_tokens": stop, "named": stop}.items():
        monkeypatch.setattr(cli, name, fake)
    needed = ["--image", "image.png", "--prompt", "why?"] if command == "compress" else []
    with pytest.raises(SystemExit):
        cli.main([command, *needed, *options])
    said = capsys.readouterr()
    assert asked == [dtype] and "far enough" in said.err
    line = "the host runs in float32 on this CPU, where bfloat16 is not faster\n"
    assert said.out == ("" if options[1:] and options[1] != "auto" else line)


@pytest.mark.parametrize(("command", "files"), [("demo", []), ("ablate", ["one.yaml"])])
def test_commands_pass_on_what_is_asked_for(
    command: str, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    for name in ("run_demo", "run_ablations"):
        monkeypatch.setattr(cli, name, lambda *given, dtype, **settings: asked.append(dtype))
    cli.main([command, *files])
    cli.main([command, *files, "--dtype", "bfloat16"])
    assert asked == ["auto", "bfloat16"]
    with pytest.raises(SystemExit) as refused:
        cli.main([command, *files, "--dtype", "int8"])
    assert refused.value.code == 2 and "int8" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_demo_trains_and_compares_in_it(
    asked: Any, dtype: torch.dtype, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(1.0)
    found: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def load(*, dtype: torch.dtype) -> None:
        found["compared"] = dtype
        raise Stop

    monkeypatch.setattr(demo, "ScorerTraining", lambda **settings: found.update(settings))
    monkeypatch.setattr(demo, "fit_scorer", lambda *given, **settings: tmp_path)
    monkeypatch.setattr(demo, "load_host", load)
    with pytest.raises(Stop):
        demo.demo(tmp_path, dtype=asked)
    assert found["precision"] == asked and found["compared"] == dtype


@pytest.mark.parametrize(
    ("options", "precision"),
    [([], "32-true"), (["--trainer.precision", "bf16-mixed"], "bf16-mixed")],
)
def test_the_host_trains_in_it(
    options: list[str],
    precision: str,
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[dict[str, Any]] = []

    class Stop(Exception):
        pass

    def trainer(folder: Path, **settings: Any) -> None:
        asked.append(settings)
        raise Stop

    monkeypatch.setattr(fitting, "trainer_for", trainer)
    arguments = ["--folder", str(tmp_path), "--trainer.accelerator", "cpu", *options]
    for gain in (1.0, 4.0):
        machine(gain)
        with pytest.raises(Stop):
            fitting.fit_host(arguments)
    assert [settings["precision"] for settings in asked] == [precision, "bf16-mixed"]
    told = capsys.readouterr().out.splitlines()
    assert told == (
        []
        if options
        else [
            "trainer.precision is 32-true: float32 on this CPU, where bfloat16 is not faster",
            "trainer.precision is bf16-mixed: bfloat16 on this CPU, where bfloat16 is faster than float32",
        ]
    )


def test_stock_models_run_in_it(machine: Machine) -> None:
    for gain, dtype in ((1.0, torch.float32), (4.0, torch.bfloat16)):
        machine(gain)
        assert load_stock("embedded")[0].dtype == dtype
    assert load_stock("embedded", dtype=torch.float16)[0].dtype == torch.float16


@pytest.mark.parametrize(("given", "dtype"), [({}, torch.float32), ({"dtype": "float16"}, torch.float16)])
def test_plug_ins_run_in_it(
    given: dict[str, str], dtype: torch.dtype, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(1.0)
    monkeypatch.setattr(chat, "load_stock", lambda name, **settings: (SimpleNamespace(**settings), None))
    assert chat.Chat("embedded", Recipe(KMeans(), count=1), **given).model.dtype == dtype
    assert chat.chat_of("embedded", method="kmeans", count=1, **given).model.dtype == dtype
