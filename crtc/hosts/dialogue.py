"""From pictures and questions to model inputs, and from logits back to the answer positions.

Rows are questions; every picture is encoded once, however many are asked about it. Answers are teacher-forced: the
argmax at every answer position is right exactly if greedy decoding gives that answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from crtc.hosts.family import CACHE
from crtc.hosts.prompt import columns, encoder_outputs
from crtc.hosts.vlm import Encoded
from crtc.tasks.picture import Picture
from crtc.tokens import Plan, Tokens

LLAVA_PROMPT = "USER: <image>\n{question} ASSISTANT:"


@dataclass(frozen=True)
class Dialogue:
    """Prompts with an accepted answer behind each, padded on the right; a row for every accepted answer.

    Args:
        inputs: `input_ids`, `attention_mask` and `pixel_values` of the pictures.
        image_of: the picture of every row.
        question: of every row, counted over all pictures; the first row of a question has its reference answer.
        targets: the answer token that each column is to predict, -100 elsewhere.
    """

    inputs: dict[str, Any]
    image_of: Int[Tensor, " B"]
    question: Int[Tensor, " B"]
    targets: Int[Tensor, "B L"]


def prompt_of(processor: Any, question: str) -> str:
    """The prompt of a question about one image: by the processor's chat template, LLaVA-1.5's form without one."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    return LLAVA_PROMPT.format(question=question)


def dialogue(processor: Any, pictures: Sequence[Picture]) -> Dialogue:
    """Inputs of all questions of some pictures with each of their accepted answers behind.

    Raises:
        ValueError: if there are no questions.
    """
    tokenizer = processor.tokenizer
    rows: list[list[int]] = []
    starts: list[int] = []
    owners: list[tuple[int, int]] = []
    asked = [(number, question) for number, picture in enumerate(pictures) for question in picture.questions]
    if not asked:
        raise ValueError(f"{len(pictures)} pictures hold no questions")
    pixels = processor.image_processor(images=[picture.image for picture in pictures], return_tensors="pt")[
        "pixel_values"
    ]
    for place, (number, question) in enumerate(asked):
        prompt = _expand(processor, prompt_of(processor, question.text), pixels[number])
        for answer in question.answers:
            rows.append(prompt + answer_ids(tokenizer, answer))
            starts.append(len(prompt))
            owners.append((number, place))
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, -100)
    for row, (tokens, start) in enumerate(zip(rows, starts, strict=True)):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        targets[row, start - 1 : len(tokens) - 1] = torch.tensor(tokens[start:])
    image_of, question_of = torch.tensor(owners).unbind(1)
    return Dialogue({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, image_of, question_of, targets)


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Tokens of an answer as it follows a prompt, with the end of text."""
    return [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def _expand(processor: Any, prompt: str, pixels: Float[Tensor, "3 H W"]) -> list[int]:
    """Ids of a prompt with one placeholder per visual token."""
    ids = processor.tokenizer(prompt).input_ids
    image = processor.image_token_id
    count = tokens_of(processor, *pixels.shape[-2:])
    return [token for one in ids for token in ([one] * count if one == image else [one])]


def tokens_of(processor: Any, height: int, width: int) -> int:
    """Visual tokens of an image of that many pixels."""
    patches = (height // processor.patch_size) * (width // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return int(patches + processor.num_additional_image_tokens - dropped)


def answer_logits(
    model: LlavaForConditionalGeneration, inputs: dict[str, Any], targets: Int[Tensor, "B L"]
) -> tuple[Float[Tensor, "A V"], Int[Tensor, " A"], Int[Tensor, " A"]]:
    """Logits at the answer positions, the tokens expected there, and the row of each."""
    output = model.model(**inputs)
    asked = targets != -100
    logits = model.lm_head(output.last_hidden_state[asked]).float()
    return logits, targets[asked], asked.nonzero()[:, 0]


def prompts(encoded: Encoded, targets: Int[Tensor, "B L"]) -> Tokens:
    """The tokens that a method may see: the prompts without the answers behind them."""
    return encoded.tokens.where(asked(encoded, targets))


def asked(encoded: Encoded, targets: Int[Tensor, "B L"]) -> Bool[Tensor, " N"]:
    """Which tokens are of a prompt, not of the answer behind it."""
    last = (targets != -100).int().argmax(1)  # the column before the answer
    return encoded.column <= last[encoded.tokens.sequence]


def shortened_targets(encoded: Encoded, plan: Plan, targets: Int[Tensor, "B L"]) -> Int[Tensor, "B S"]:
    """The targets where the shortened prompts have their answers."""
    order = columns(encoded, plan)
    return targets.gather(1, order.clamp(min=0)).masked_fill(order < 0, -100)


def right_rows(
    logits: Float[Tensor, "A V"], expected: Int[Tensor, " A"], row: Int[Tensor, " A"], rows: int
) -> Bool[Tensor, " B"]:
    """Rows whose every answer token is the likeliest."""
    wrong = torch.zeros(rows, dtype=torch.long, device=row.device).index_add(
        0, row, (logits.argmax(-1) != expected).long()
    )
    return wrong == 0


def right_questions(right: Bool[Tensor, " B"], question: Int[Tensor, " B"]) -> Bool[Tensor, " Q"]:
    """Questions of which any accepted answer's row is right."""
    found = torch.zeros(int(question.max()) + 1, dtype=torch.long, device=right.device)
    return found.index_add(0, question, right.long()) > 0


def shared_logits(
    model: LlavaForConditionalGeneration,
    inputs: dict[str, Any],
    image_of: Int[Tensor, " B"],
    targets: Int[Tensor, "B L"],
) -> Float[Tensor, "A V"]:
    """`answer_logits`, the part that all questions of a picture share computed once.

    Args:
        model: the host.
        inputs: ids padded on the right, a mask [B, L] or [B, 1, L, L], `mm_encoder_outputs` with one entry per picture,
            and `position_ids` if they are not to be counted.
        image_of: the picture of every row.
        targets: expected token per column.
    """
    shared = _shared(model, inputs, image_of)
    if shared == 0:
        images = inputs["mm_encoder_outputs"]["image"].pooler_output
        rows = encoder_outputs([images[int(number)] for number in image_of])
        return answer_logits(model, {**inputs, "mm_encoder_outputs": rows}, targets)[0]
    return _from_shared(model, inputs, image_of, targets, shared)[0]


@torch.no_grad()
def logits_and_looks(
    model: LlavaForConditionalGeneration,
    inputs: dict[str, Any],
    image_of: Int[Tensor, " B"],
    targets: Int[Tensor, "B L"],
) -> tuple[Float[Tensor, "A V"], Float[Tensor, "B L"]]:
    """`shared_logits`, and how much question and answer look at every column: squared attention, all layers and heads.

    Squares, because a sum is mostly what many heads leave evenly on everything; where a head looks, it looks hard.
    Arguments as those of `shared_logits`, the mask [B, L].

    Raises:
        ValueError: if the pictures do not stand before their questions.
    """
    shared = _shared(model, inputs, image_of)
    if shared == 0:
        raise ValueError("the pictures do not stand before their questions, expected them to where attention is read")
    config: Any = model.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"  # the only one that tells its weights
    try:
        logits, attentions = _from_shared(model, inputs, image_of, targets, shared, output_attentions=True)
    finally:
        config._attn_implementation = before
    asks = inputs["attention_mask"][:, shared:].bool()
    looks = torch.stack([(layer.float().square() * asks[:, None, :, None]).sum((1, 2)) for layer in attentions]).sum(0)
    return logits, looks


def _shared(model: LlavaForConditionalGeneration, inputs: dict[str, Any], image_of: Int[Tensor, " B"]) -> int:
    """Columns that all questions of a picture have in common, up to the end of the picture."""
    ids = inputs["input_ids"]
    first = first_rows(image_of)
    last_image = (ids == model.config.image_token_id).int().flip(1).argmax(1)
    shared = ids.shape[1] - int(last_image.max())
    level = bool((last_image == last_image[0]).all())
    # else the pictures come after their questions, or are of unequal length
    return shared if level and torch.equal(ids[:, :shared], ids[first][image_of, :shared]) else 0


def once_per_picture(inputs: dict[str, Any], image_of: Int[Tensor, " B"]) -> dict[str, Any]:
    """Inputs of rows that hold the same of a picture, whatever they ask, as `shared_logits` reads them."""
    images = inputs["mm_encoder_outputs"]["image"].pooler_output
    return {**inputs, "mm_encoder_outputs": encoder_outputs([images[int(row)] for row in first_rows(image_of)])}


def first_rows(image_of: Int[Tensor, " B"]) -> Int[Tensor, " G"]:
    """The first row of every picture."""
    return torch.stack([(image_of == number).nonzero()[0, 0] for number in range(int(image_of.max()) + 1)])


def _from_shared(
    model: LlavaForConditionalGeneration,
    inputs: dict[str, Any],
    image_of: Int[Tensor, " B"],
    targets: Int[Tensor, "B L"],
    shared: int,
    **options: Any,
) -> tuple[Float[Tensor, "A V"], tuple[Tensor, ...]]:
    """Logits at the answers and the attentions, if asked for, of the columns behind the shared ones."""
    ids, mask, positions = inputs["input_ids"], inputs["attention_mask"], inputs.get("position_ids")
    if bool((targets[:, :shared] != -100).any()):
        raise ValueError("an answer stands before the end of the image, expected answers behind their questions")
    first = first_rows(image_of)
    begun = model.model(
        input_ids=ids[first, :shared],
        attention_mask=mask[first][..., :shared] if mask.ndim == 2 else mask[first][..., :shared, :shared],
        position_ids=None if positions is None else positions[first, :shared],
        mm_encoder_outputs=inputs["mm_encoder_outputs"],
        use_cache=True,
    )
    cache = begun.past_key_values
    cache.batch_select_indices(image_of)
    rest = model.model(
        input_ids=ids[:, shared:],
        attention_mask=mask if mask.ndim == 2 else mask[..., shared:, :],
        position_ids=None if positions is None else positions[:, shared:],
        use_cache=True,
        **{CACHE: cache},
        **options,
    )
    logits: Tensor = model.lm_head(rest.last_hidden_state[targets[:, shared:] != -100])
    return logits.float(), rest.attentions or ()
