"""`lmms-eval --model crtc`: any image-text model of the Hugging Face hub, its images compressed by any method.

lmms-eval finds `manifest` through the entry point `lmms_eval.models`; this module needs lmms-eval installed.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from crtc.plugins.chat import Dialogue, chat_of


def manifest() -> Any:
    """What lmms-eval registers."""
    return ModelManifest(model_id="crtc", chat_class_path=f"{__name__}.{Crtc.__name__}")


class Crtc(lmms):  # type: ignore[misc]
    """A model of lmms-eval; its arguments are what `--model_args` takes.

    Args:
        pretrained: "embedded", a folder, or an id of the Hugging Face hub.
        batch_size: questions side by side.
        max_batch_size: none can be given, since batches are of one size.
        device: of the model; without, a GPU if there is one, of several processes each its own.
        options: everything else, as `crtc.plugins.chat.chat_of` takes it: `method`, `count`, ...

    Raises:
        ValueError: if an argument cannot be what it is, or the model cannot be loaded or compressed.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
        if max_batch_size is not None:
            raise ValueError(f"max_batch_size is {max_batch_size}, expected none: batches are of batch_size")
        self.batch_size = int(batch_size)
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device is None and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.chat = chat_of(pretrained, device=device, **options)
        self.device = self.chat.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests; those with equal options share batches."""
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(repr(request.args[2]), []).append(place)
        said = [""] * len(requests)
        with tqdm(total=len(requests), desc="answering", unit="question", disable=self.rank > 0) as progress:
            for places in alike.values():
                for start in range(0, len(places), self.batch_size):
                    batch = places[start : start + self.batch_size]
                    options = requests[batch[0]].args[2]
                    answers = self.chat.answer([self._dialogue(requests[place]) for place in batch], options)
                    for place, answer in zip(batch, answers, strict=True):
                        said[place] = answer
                    progress.update(len(batch))
        return said

    def _dialogue(self, request: Any) -> Dialogue:
        _, to_messages, _, number, task, split = request.args
        return [
            {"role": message["role"], "content": [_part(part) for part in message["content"]]}
            for message in to_messages(self.task_dict[task][split][number])
        ]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise `NotImplementedError`: this model answers."""
        raise NotImplementedError("crtc answers questions; tasks of log-likelihoods are not for it")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise `NotImplementedError`: this model answers once."""
        raise NotImplementedError("crtc answers once; tasks of several rounds are not for it")


def _part(part: Any) -> dict[str, Any]:
    """A part of a message with the image where chat templates look for it."""
    return {"type": "image", "image": part["url"]} if part["type"] == "image" else dict(part)
