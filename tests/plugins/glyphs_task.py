"""A task for lmms-eval made in code: questions about glyph scenes, on disk as its data sets are."""

from pathlib import Path

from crtc.tasks.picture import Task

_YAML = """\
task: glyphs
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.visual
doc_to_text: question
doc_to_target: answer
process_results: !function functions.judge
generation_kwargs: {{max_new_tokens: 40, temperature: 0, do_sample: false}}
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
"""
_FUNCTIONS = """\
def visual(doc):
    return [doc["image"].convert("RGB")]


def judge(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""


def write_task(task: Task, folder: Path) -> Path:
    """Write data, functions and YAML of `glyphs`; the folder is for `--include_path`."""
    from datasets import Dataset, DatasetDict

    rows = [
        {"image": picture.image, "question": question.text, "answer": question.answers[0]}
        for picture in (task[number] for number in range(len(task)))
        for question in picture.questions
    ]
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(folder / "data")
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "functions.py").write_text(_FUNCTIONS)
    (tasks / "glyphs.yaml").write_text(_YAML.format(data=folder / "data"))
    return tasks
