"""The embedded host, served by vLLM with the plug-in installed: `make test-vllm`, in an environment of its own."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
vllm = pytest.importorskip("vllm", reason="make test-vllm")

from crtc.compression import compressed  # noqa: E402
from crtc.hosts.dialogue import prompt_of  # noqa: E402
from crtc.hosts.embedded import EMBEDDED  # noqa: E402
from crtc.plugins.serving import Serving  # noqa: E402
from crtc.plugins.vllm import ARCHITECTURE  # noqa: E402
from crtc.tasks.picture import Glyphs  # noqa: E402

CASES: list[dict[str, Any]] = [
    {"method": "kmeans", "count": 64},
    {"method": "vision_zip", "keep": 0.1},
    {"method": "reinforced_scorer", "settings": {"question": False}, "count": 32},
]
WORDS = 12


def serve(**said: Any) -> Any:
    """An engine as users start it; the architecture is known by the entry point alone."""
    return vllm.LLM(
        str(EMBEDDED),
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        limit_mm_per_prompt={"image": 2},
        hf_overrides={"architectures": [ARCHITECTURE], "crtc": said},
    )


@pytest.fixture(scope="module", params=CASES, ids=lambda said: said["method"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Any, dict[str, Any]]]:
    engine = serve(**request.param)
    yield engine, request.param
    engine.llm_engine.engine_core.shutdown()


def answers(engine: Any, prompts: list[tuple[str, list[Any]]]) -> list[tuple[int, list[int]]]:
    """Length of every prompt as vLLM reads it, and its greedy tokens."""
    asked = [{"prompt": text, "multi_modal_data": {"image": images}} for text, images in prompts]
    outputs = engine.generate(asked, vllm.SamplingParams(temperature=0, max_tokens=WORDS), use_tqdm=False)
    return [(len(output.prompt_token_ids), list(output.outputs[0].token_ids)) for output in outputs]


@torch.no_grad()
def test_greedy_tokens_are_those_of_transformers(host: tuple[Any, Any], served: tuple[Any, dict[str, Any]]) -> None:
    (model, processor), (engine, said) = host, served
    pictures = Glyphs("test", 3, 4)
    prompts = [
        (prompt_of(processor, question.text), [picture.image])
        for picture in (pictures[number] for number in range(len(pictures)))
        for question in picture.questions
    ]
    both = prompts[0][0].replace("<image>\n", "<image>\n<image>\n")
    prompts.append((both, [pictures[0].image, pictures[1].image]))
    serving = Serving.of(type("Config", (), {"crtc": said}))
    expected = []
    for text, images in prompts:
        inputs = processor(images=images, text=text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        amount = {"keep": serving.keep, "count": serving.count}
        with compressed(model, serving.method, **amount, mass=False, positions="repack"):
            output = model.generate(**inputs, max_new_tokens=WORDS, do_sample=False)
        short = length - len(images) * (576 - serving.num_kept(576))
        expected.append((short, output[0, length:].tolist()))
    assert answers(engine, prompts) == expected
    assert len({tuple(words) for _, words in expected}) > 5


@pytest.mark.parametrize(
    "said", [{"method": "mmtok", "count": 9}, {"method": "kmeans", "count": 577}], ids=["question", "count"]
)
def test_what_cannot_be_served_fails_at_the_start(said: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    reason = {"mmtok": "MMTok looks at the question", "kmeans": "count is 577, but a group has only 576"}
    with pytest.raises((ValueError, RuntimeError)) as failed:
        serve(**said)
    told = capfd.readouterr()
    assert reason[said["method"]] in f"{failed.value}{told.out}{told.err}"
