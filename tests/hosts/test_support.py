"""Which models are hosts: found by what they can do, refused by name with the reason."""

from pathlib import Path

import pytest
import torch
import transformers as hf

import crtc
from crtc.hosts import check_model, encode
from crtc.hosts.family import FAMILY_MARK, modalities
from crtc.readme import ROOT
from tests.hosts.families import BROKEN, BUILDERS, VID, before, build
from tests.hosts.table import TABLE, table

WORDS = {"vocabulary_map": {"<image>": 5, "IMGIMGA": 6}}
REFUSED = {
    "Mllama": ("ForConditionalGeneration", {}, "it reads images by cross-attention"),
    "Florence2": ("ForConditionalGeneration", {}, "an encoder reads its prompts"),
    "Emu3": ("ForConditionalGeneration", WORDS, "its images become discrete tokens"),
    "Chameleon": ("ForConditionalGeneration", WORDS, "its images become discrete tokens"),
    "Blip2": ("ForConditionalGeneration", {}, "it has no placeholders"),
    "Llama": ("ForCausalLM", {}, "it has no placeholders"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_with_the_reason(name):
    suffix, options, reason = REFUSED[name]
    with torch.device("meta"):
        model = getattr(hf, name + suffix)(getattr(hf, f"{name}Config")(**options))
    with pytest.raises(ValueError, match=f"{name}{suffix} is not supported: {reason}"):
        check_model(model)


def test_code_of_others_is_refused(monkeypatch):
    model = build("llava").model
    monkeypatch.setattr(type(model), "is_remote_code", classmethod(lambda cls: True))
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration is not supported: its code is not that"):
        check_model(model)
    with pytest.raises(ValueError, match="Linear is not supported, expected a vision-language model"):
        check_model(torch.nn.Linear(1, 1))


def test_families_are_found():
    assert len({build(name).model.config.model_type for name in BUILDERS}) == 35 - len(BROKEN)
    for name in BUILDERS:
        host = build(name)
        assert check_model(host.model) is host.model
        shown = {"video" if picture.token == VID else "image" for picture in host.pictures}
        assert shown <= set(modalities(host.model))
        assert {visual.modality for visual in encode(host.model, host.inputs()).visuals} == shown


def test_few_lines_suit_particular_families():
    lines = [line for file in Path(crtc.__file__).parent.rglob("*.py") for line in file.read_text().splitlines()]
    special = [line for line in lines if FAMILY_MARK in line and not line.lstrip().startswith(("#", "Lines", "FAMILY"))]
    assert 0 < len(special) < 60


@pytest.mark.skipif(before("5.23"), reason="stock models of older transformers can do less, as the table's head says")
def test_the_table_is_what_the_families_do():
    kept = [line for line in (ROOT / TABLE).read_text().splitlines() if not (BROKEN and line.startswith("| Llama4 |"))]
    assert table().splitlines() == kept, "run `python -m tests.hosts.table`"
