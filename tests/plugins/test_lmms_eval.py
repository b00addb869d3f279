"""lmms-eval runs the plug-in from end to end: right where the package's own evaluation is, question by question.

Needs lmms-eval: `make test-lmms-eval` makes an environment of its own for it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval.models import get_model

from crtc.evaluation import Evaluation
from crtc.hosts.embedded import load_host
from crtc.methods import get_method
from crtc.tasks.picture import Glyphs
from tests.plugins.glyphs_task import write_task

TASK = Glyphs("test", pictures=12, questions=6)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def lmms_eval(folder: Path, model_args: str, output: Path) -> tuple[float, list[bool]]:
    """What the command line of lmms-eval says of the task of the folder: accuracy, and question by question."""
    command = [str(Path(sys.executable).with_name("lmms-eval")), "--model", "crtc", "--model_args", model_args]
    command += ["--tasks", "glyphs", "--include_path", str(folder / "tasks"), "--batch_size", "6"]
    command += ["--log_samples", "--output_path", str(output)]
    environment = {**os.environ, **OFFLINE, "HF_HOME": str(folder / "hub")}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    found = [*output.rglob("*_results.json"), *output.rglob("*_samples_glyphs.jsonl")]
    assert len(found) == 2, done.stderr[-3000:]  # it exits with 0 also where it failed
    accuracy = json.loads(found[0].read_text())["results"]["glyphs"]["right,none"]
    samples = sorted(map(json.loads, found[1].read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return accuracy, [bool(sample["right"]) for sample in samples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmms_eval")
    write_task(TASK, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "settings", "count", "mass"),
    [
        ("kmeans", {}, 32, True),
        ("kmeans", {}, 32, False),
        ("reinforced_scorer", {}, 16, True),
        ("reinforced_scorer", {"question": False}, 16, True),
        ("fastv", {}, 192, False),
    ],
)
def test_accuracy_is_that_of_our_evaluation(
    folder: Path, tmp_path: Path, name: str, settings: dict[str, bool], count: int, mass: bool
) -> None:
    given = {"pretrained": "embedded", "dtype": "float32", "method": name, "count": count}
    model_args = ",".join(f"{key}={value}" for key, value in {**given, "mass": mass, **settings}.items())
    accuracy, each = lmms_eval(folder, model_args, tmp_path)
    ours = Evaluation(
        load_host(), TASK, {name: get_method(name, **settings)}, counts=[count], masses=[mass], positions="keep"
    ).run()
    right = ours.runs[name, mass, count].right
    print(f"{model_args}: lmms-eval {accuracy:.4f}, crtc {right.mean():.4f}, all tokens {ours.full().right.mean():.4f}")
    assert 0.2 < right.mean() < 1
    assert accuracy == pytest.approx(right.mean())
    assert each == right.tolist()


@pytest.mark.parametrize(
    ("model_args", "said"),
    [
        ("method=kmeens,count=8", "no method is named 'kmeens'"),
        ("method=kmeans,count=8,keep=0.5", "expected exactly one of them"),
        ("method=kmeans", "expected exactly one of them"),
        ("method=kmeans,scorer=x,count=8", "expected at most one of them"),
        ("method=kmeans,count=8,colour=red", "cannot be made with {'colour': 'red'}"),
        ("method=kmeans,count=8,mass=perhaps", "mass is 'perhaps'"),
        ("method=kmeans,count=8,dtype=int8", "dtype is 'int8'"),
        ("method=kmeans,count=8,max_batch_size=4", "max_batch_size is 4"),
        ("method=kmeans,count=8,batch_size=auto", "batch_size is 'auto'"),
    ],
)
def test_bad_arguments_are_refused(model_args: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        get_model("crtc").create_from_arg_string(f"pretrained=embedded,{model_args}")
