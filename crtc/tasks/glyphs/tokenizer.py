"""The word-level tokenizer of the glyph language, in stock Hugging Face form."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from crtc.tasks.glyphs.scene import COLORS, NUMBER, SHAPES, plural

PROMPT = "USER: <image>\n{question} ASSISTANT:"

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_WORDS = (
    *("user", "assistant", "what", "color", "is", "the", "shape", "how", "many", "things", "there", "a", "an", "left"),
    *("right", "of", "above", "below", "bigger", "than", "list", "yes", "no", "image", "in", "and", "are", "which"),
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words with a leading blank, single digits, punctuation; decoding gives the text back."""
    words = [*COLORS, *SHAPES, NUMBER, *map(plural, (*SHAPES, NUMBER)), *_WORDS]
    pieces = [*_SPECIAL, "▁", *"0123456789", *"?,.:", *(f"▁{word}" for word in (*"0123456789", *words))]
    core = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("\n", " ")])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex("▁?[0-9]"), "isolated"),
            pre_tokenizers.Punctuation(),
        ]
    )
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
