"""How the code of each method's authors is called: what it gets, which of its lines run, where its answer is.

A run has all it needs before the clock starts. It is given the whole batch where it takes one, else the pictures one by
one. Model forward passes are not in it, and no line is changed but for whole numbers that hold the size of a grid.
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from crtc.relevance import text_of
from crtc.tokens import Groups, Tokens
from tests.methods.authors.source import Source

LLAVA = "LlavaMetaForCausalLM"
"""The class that most of them extend."""


@dataclass(frozen=True)
class Batch:
    """Pictures of one size, as the authors' code takes them.

    Args:
        x: visual tokens in the embedding space of the language model.
        text: words of the question.
        features: visual tokens before the projector.
        keys: of the vision tower.
        attention: of the [CLS] token.
        received: from all tokens.
        shallow: the same in a shallow layer.
        tokens: all of this, and what the language model tells of it.
    """

    x: Float[Tensor, "B N D"]
    text: Float[Tensor, "B T D"]
    features: Float[Tensor, "B N De"]
    keys: Float[Tensor, "B N Dk"]
    attention: Float[Tensor, "B N"]
    received: Float[Tensor, "B N"]
    shallow: Float[Tensor, "B N"]
    tokens: Tokens

    @classmethod
    def of(cls, tokens: Tokens) -> "Batch":
        """The pictures of `tokens`, one in each sequence."""
        places, signals = Groups.of(tokens).index, tokens.signals
        names = ("features", "keys", "cls_attention", "received_attention", "shallow_attention")
        rows = {name.split("_")[0]: getattr(signals, name)[places] for name in names}
        return cls(tokens.x[places], text_of(tokens).gather(tokens.x), attention=rows.pop("cls"), tokens=tokens, **rows)

    @property
    def size(self) -> int:
        """Tokens of a picture."""
        return self.x.shape[1]

    def alone(self) -> "list[Batch]":
        """Its pictures as batches of one."""
        return [Batch.of(self.tokens.select(torch.tensor([place]))) for place in range(len(self.x))]


@dataclass(frozen=True)
class Answer:
    """What is left of one picture.

    Args:
        kept: places of the kept tokens, ascending, if the code tells.
        rows: their content, if it is merged.
        sizes: how many tokens each stands for, if the code tells.
    """

    kept: list[int] | None = None
    rows: Float[Tensor, "K D"] | None = None
    sizes: list[float] | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.kept is None and self.rows is not None else len(self.kept or ())


@dataclass(frozen=True)
class Run:
    """The authors' code with its input.

    Args:
        go: runs it.
        read: the answers for all pictures in what `go` returned.
    """

    go: Callable[[], Any]
    read: Callable[[Any], list[Answer]]


def chosen(places: Sequence[Int[Tensor, " K"]] | Int[Tensor, "B K"]) -> list[Answer]:
    """Answers that are places, in any order."""
    return [Answer(sorted(torch.as_tensor(one).tolist())) for one in places]


def marked(masks: Sequence[Tensor] | Tensor) -> list[Answer]:
    """Answers that are masks."""
    return [Answer(mask.flatten().nonzero()[:, 0].tolist()) for mask in masks]


def merged(rows: Float[Tensor, "B K D"] | list[Tensor]) -> list[Answer]:
    """Answers that are content alone."""
    return [Answer(rows=one) for one in rows]


def clustered(parts: list[tuple[Tensor, Tensor, Tensor, Any]]) -> list[Answer]:
    """Answers of PACT: content, mask and sizes, all where the tokens were."""
    found = []
    for rows, mask, sizes, _ in parts:
        kept = mask.flatten().nonzero()[:, 0]
        found.append(Answer(kept.tolist(), rows[kept], sizes[kept].tolist()))
    return found


def torch_with(**instead: Callable[..., Any]) -> ModuleType:
    """PyTorch with other functions in the place of some."""
    module = ModuleType("torch")
    vars(module).update({**vars(torch), **instead})
    return module


def divprune(source: Source, batch: Batch, k: int) -> Run:
    """Its function, picture by picture."""
    code = source.define(f"{LLAVA}.DivPrune", f"{LLAVA}.pairwise_cosine_similarity")
    model = SimpleNamespace(pairwise_cosine_similarity=lambda x: code["pairwise_cosine_similarity"](None, x))
    ratio = k / batch.size
    return Run(lambda: [code["DivPrune"](model, x, batch.size, threshold_ratio=ratio)[0] for x in batch.x], chosen)


def cdpruner(source: Source, batch: Batch, k: int, *, sign: int) -> Run:
    """From the cosines to the choice; every picture has a question of its own, so they go one by one."""
    if sign != -1:
        raise ValueError(f"sign is {sign}, but the code has -1 only")
    given = ("self", "image_features", "image_embeds", "text_embeds", "B", "N", "device")
    code = source.span(f"{LLAVA}.encode_images", "image_normalized", "select_idx", given=given, wanted=("select_idx",))
    model, alone = SimpleNamespace(visual_token_num=k), batch.alone()
    return Run(
        lambda: [code(model, one.x, one.x, one.text[0], 1, batch.size, one.x.device)[0][0] for one in alone], chosen
    )


def mmtok(source: Source, batch: Batch, k: int, *, weight: float = 0.5) -> Run:
    """Its selector with the temperatures of mmtok/core/mmtok_core.py, picture by picture."""
    selector = source.define("greedy_merged_jit_kernel", "SemanticTokenSelector")["SemanticTokenSelector"](k, weight)
    select, alone = selector.mm_coverage_selection, batch.alone()
    return Run(
        lambda: [select(one.text[0], one.x[0], one.features[0], tv_temp=0.02, vv_temp=0.2)[0] for one in alone], chosen
    )


def scope(source: Source, batch: Batch, k: int) -> Run:
    """Its function on the batch."""
    code = source.define("SCOPE")["SCOPE"]
    return Run(lambda: code(batch.features, k, batch.attention)[0], chosen)


def vispruner(source: Source, batch: Batch, k: int) -> Run:
    """From the counts to the chosen places, on the batch."""
    given = ("self", "image_features", "image_attentions", "B", "N", "device")
    code = source.span(
        f"{LLAVA}.encode_images", "visual_token_num", "index_masks", given=given, wanted=("selected_indices",)
    )
    model = SimpleNamespace(get_visual_token_num=lambda: k, get_important_ratio=lambda: 0.5)
    inputs = (batch.features, batch.attention[:, None], *batch.x.shape[:2], batch.x.device)
    return Run(lambda: code(model, *inputs)[0], chosen)


def tome(source: Source, batch: Batch, k: int) -> Run:
    """Its matching and merging, round after round on the merged tokens of the batch."""
    code = source.define("do_nothing", "bipartite_soft_matching", "merge_wavg")

    def go() -> Tensor:
        x, size = batch.x, None
        while x.shape[1] > k:
            merge, _ = code["bipartite_soft_matching"](x, x.shape[1] - k)
            x, size = code["merge_wavg"](merge, x, size)
        return x

    return Run(go, merged)


UNREAD: dict[str, Any] = {"map_size": (), "init_grid_size": ()}
"""Of TCFormer's tokens, carried along."""


def tcformer(source: Source, batch: Batch, k: int) -> Run:
    """Its clustering and merging of the batch, without the noise on the densities."""
    code = source.define("index_points", "cluster_dpc_knn", "merge_tokens", torch=torch_with(rand=torch.zeros))
    place = torch.arange(batch.size).expand(batch.x.shape[:2])
    tokens = {"x": batch.x, "idx_token": place, "agg_weight": torch.ones(*place.shape, 1), **UNREAD}

    def go() -> Tensor:
        rows: Tensor = code["merge_tokens"](tokens, *code["cluster_dpc_knn"](tokens, k))["x"]
        return rows

    return Run(go, merged)


def quiet() -> dict[str, Any]:
    """What SparseVLM's clustering sees: no noise, and the one function of einops that it calls."""

    def rearrange(x: Tensor, pattern: str) -> Tensor:
        return x[:, :, None] if pattern.endswith("l () r") else x[:, None]

    return {"torch": torch_with(rand=torch.zeros), "ein": SimpleNamespace(rearrange=rearrange)}


def sparsevlm_merging(source: Source, batch: Batch, k: int, *, neighbors: None) -> Run:
    """Its clustering and merging without the noise on the densities; one by one, a batch takes gigabytes."""
    code, alone = source.define("index_points", "cluster_and_merge", **quiet())["cluster_and_merge"], batch.alone()
    return Run(lambda: [code(one.x, k)[0] for one in alone], merged)


PACT = (
    "normal_compute_pairwise_distances",
    "DBDPC",
    "compute_fastest_cluster_means_with_arbitrary_ids",
    "merge_clusters",
    "token_reduction",
)
"""The definitions that its clustering takes."""


def dbdpc(source: Source, batch: Batch, k: int, *, cutoff: float) -> Run:
    """Its clustering and merging with its own settings; it keeps what the cutoff gives, whatever k is."""
    code, settings = source.define(*PACT)["token_reduction"], pact_settings(source)
    return Run(lambda: [code(x, x, cutoff, [], settings) for x in batch.x], clustered)


def pact_settings(source: Source) -> Any:
    """What PACT reads from its own file of settings."""
    text = source.beside("configs/pact.json").text
    around = {
        "os": SimpleNamespace(path=SimpleNamespace(exists=lambda _: True), getenv=lambda *_: None),
        "open": lambda *_: io.StringIO(text),
        "json": json,
        "SimpleNamespace": SimpleNamespace,
    }
    return source.define("load_config", **around)["load_config"]("configs/pact.json")


def agglomerative(source: Source, batch: Batch, k: int, *, linkage: str) -> Run:
    """Its clustering and merging, which use scikit-learn, picture by picture."""
    code = source.define(
        "compute_fastest_cluster_means_with_arbitrary_ids",
        "Agglomerative",
        "merge_Agglomerative",
        "token_reduction_agglomerative",
    )["token_reduction_agglomerative"]
    share = Fraction(k, batch.size)
    return Run(lambda: [code(x, x, share, linkage, []) for x in batch.x], clustered)


def gprune(source: Source, batch: Batch, k: int) -> Run:
    """The statements for the first of its two images, picture by picture."""
    only = ("image1_feature_normalized", "A1", "Degree1", "W1", "result1", "keep_indices1")
    code = source.span(
        f"{LLAVA}.prepare_inputs_labels_for_multimodal",
        "similarity",
        "keep_indices1",
        given=("image_feature", "image_token_index1", "keep_ratio"),
        wanted=("keep_indices1",),
        only=(*only, "similarity", "temperature", "iterate_num"),
    )
    places, share = torch.arange(batch.size), Fraction(k, 576)
    return Run(lambda: [code(x, places, share)[0] for x in batch.x], chosen)


def visionzip(source: Source, batch: Batch, k: int) -> Run:
    """From the dominant tokens on, on the batch; a row for the [CLS] token is in front and not read."""
    given = ("cls_attention_sum", "hidden_states", "metric", "dominant_num", "contextual_num", "cls_idx", "images")
    code = source.span(
        "CLIPVisionTower_VisionZip.forward",
        "topk_indices",
        "hidden_states_save",
        given=given,
        wanted=("hidden_states_save",),
    )
    contextual = max(round(k * 10 / 64), 1)
    states, keys = (F.pad(rows, (0, 0, 1, 0)) for rows in (batch.x, batch.keys))
    inputs = (batch.attention, states, keys, k - contextual, contextual, 0, states)
    return Run(lambda: code(*inputs)[0], lambda rows: merged(rows[:, 1:]))


def pru_merge(source: Source, batch: Batch, k: int) -> Run:
    """From the top-k of attention on, on the batch; the one extra row is not read."""
    code = _pru_merge(source, "token_prune_merge_advanced", batch.size)
    keys, share = F.pad(batch.keys, (0, 0, 1, 0)), Fraction(k, batch.size)
    return Run(lambda: code(None, batch.x, batch.attention, keys, *batch.x.shape[1:], share, False), _rows_at)


def pru_merge_plus(source: Source, batch: Batch, k: int) -> Run:
    """The same one by one, attended tokens as many as give no more than k with those at even steps."""
    code = _pru_merge(source, "token_prune_merge_advanced_plus", batch.size)
    tower = SimpleNamespace(device=batch.x.device)
    inputs = [
        (tower, one.x, one.attention, F.pad(one.keys, (0, 0, 1, 0)), *one.x.shape[1:], _attended(one, k), True)
        for one in batch.alone()
    ]
    return Run(lambda: [code(*one) for one in inputs], lambda parts: [_rows_at(one)[0] for one in parts])


def _pru_merge(source: Source, name: str, size: int) -> Callable[..., Any]:
    given = ("self", "image_features", "cls_attn", "desired_layer_k", "N", "C", "reduction_ratio", "if_adaptive")
    return source.span(
        f"CLIPVisionTower.{name}",
        "idx",
        "updated_x_others",
        given=given,
        wanted=("idx", "updated_x_others"),
        numbers={575: size - 1},
        complement_idx=source.define("complement_idx")["complement_idx"],
    )


def _rows_at(parts: tuple[Int[Tensor, "B K"], Float[Tensor, "B K1 D"]]) -> list[Answer]:
    order = parts[0].argsort(1)
    return [
        Answer(at[places].tolist(), rows[places]) for at, rows, places in zip(parts[0], parts[1], order, strict=True)
    ]


def _attended(one: Batch, k: int) -> Fraction:
    """Largest share of attended tokens that leaves no more than k in all."""
    order = one.attention[0].argsort(descending=True).tolist()
    for number in range(min(k, one.size // 3), 0, -1):
        if len({*order[:number], *range(0, one.size - 1, one.size // number // 3)}) <= k:
            return Fraction(number, one.size)
    raise ValueError(f"k is {k}, but one attended token and those at even steps are more")


def hiprune(source: Source, batch: Batch, k: int, *, alpha: float = 0.1) -> Run:
    """From the number of anchors to the masks, on the batch, with its own grid in the place of 24 x 24."""
    given = ("image_features", "shallow_attention", "deep_attention", "visual_token_num", "B", "N")
    code = source.span(
        f"{LLAVA}.encode_images",
        "shallow_token_num",
        "index_masks",
        given=given,
        wanted=("index_masks",),
        numbers={24: math.isqrt(batch.size), 575: batch.size - 1},
        os=SimpleNamespace(environ={"HIPRUNE_ALPHA": str(alpha)}),
    )
    # it writes into the attention
    return Run(lambda: code(batch.x, batch.shallow, batch.received.clone(), k, *batch.x.shape[:2])[0], marked)


def holov(source: Source, batch: Batch, k: int) -> Run:
    """Its function on the batch with the crops that it is called with; rows tell which tokens they were."""
    code = source.define("HoloV")["HoloV"]

    def read(rows: Float[Tensor, "B K D"]) -> list[Answer]:
        return chosen([(x == row[:, None]).all(-1).long().argmax(-1) for x, row in zip(batch.x, rows, strict=True)])

    return Run(lambda: code(batch.x, batch.attention, 16, k), read)


def apet(source: Source, batch: Batch, k: int) -> Run:
    """The choice and the merging, on the batch, with the token nearest to the mean for the one that it draws.

    Between the two it would write the basis over other tokens and go on in half precision.
    """
    mean = batch.features.mean(1, keepdim=True)
    first = (batch.features - mean).square().sum(-1).argmin(1)
    fps = source.beside("llava/model/utils.py").define("fps", torch=torch_with(randint=lambda *_, **__: first))["fps"]
    code = source.span(
        f"{LLAVA}.encode_images",
        "k",
        "errors_indices",
        given=("self", "image_features", "selection_method", "visual_token_num"),
        wanted=("fps_indices", "errors_indices"),
        fps=fps,
    )
    merge = source.define(f"{LLAVA}.token_merging")["token_merging"]
    model = SimpleNamespace(model=SimpleNamespace(basis_token_num=10))

    def go() -> tuple[Tensor, Tensor]:
        basis, order = code(model, batch.features, "fps", k)
        merge(model, batch.features.clone(), order, 10)
        return basis, order

    def read(parts: tuple[Int[Tensor, "B Z D"], Int[Tensor, "B K"]]) -> list[Answer]:
        return chosen(torch.cat([parts[0][..., 0], parts[1][:, :-10]], 1))

    return Run(go, read)


def idpruner(source: Source, batch: Batch, k: int) -> Run:
    """Its function, picture by picture, with the [CLS] attention in the place of its selector's scores."""
    places, ratio = torch.arange(batch.size), 1 - k / batch.size

    def call(one: Batch) -> Callable[[], Tensor]:
        code = source.define(
            "_default_similarity_compute",
            "_default_importance_compute",
            "_resolve_callable",
            "idpruner",
            _extract_and_validate_vision_token_info=lambda _: (places, places[:0], None, None),
            get_universal_selector_scores=lambda **_: one.attention,
        )["idpruner"]
        context = {"input_ids": torch.zeros_like(places)[None], "inputs_embeds": one.x}
        return lambda: code(context, ratio=ratio, selector_path="")

    calls = [call(one) for one in batch.alone()]
    return Run(lambda: [one() for one in calls], marked)


def fastervlm(source: Source, batch: Batch, k: int) -> Run:
    """The choice of its encoding, on the batch."""
    code = source.span(
        f"{LLAVA}.encode_images",
        "visual_token_num",
        "token_indices",
        given=("self", "image_attentions"),
        wanted=("token_indices",),
    )
    model = SimpleNamespace(get_visual_token_num=lambda: k)
    return Run(lambda: code(model, batch.attention[:, None])[0], chosen)


def trim(source: Source, batch: Batch, k: int, *, reduce: str, sign: int) -> Run:
    """Similarity, softmax and top-k, on directions and the mean direction of the words for CLIP's embeddings."""
    code = source.span(
        "CLIPVisionTower.token_reduction",
        "similarities",
        "topk_indices",
        given=("proj_image_features", "text_features", "tokens_number", "k"),
        wanted=("topk_indices",),
    )
    seen, asked = F.normalize(batch.x, dim=-1), F.normalize(batch.text, dim=-1).mean(1)
    return Run(lambda: code(seen, asked, batch.size, Fraction(k, batch.size))[0], chosen)


RUNS: dict[str, Callable[..., Run]] = {
    "divprune": divprune,
    "cdpruner": cdpruner,
    "mmtok": mmtok,
    "mmtok_image": mmtok,
    "scope": scope,
    "vispruner": vispruner,
    "tome": tome,
    "dpcknn_tcformer": tcformer,
    "dpcknn": sparsevlm_merging,
    "dbdpc": dbdpc,
    "dbdpc_wide": dbdpc,
    "agglomerative": agglomerative,
    "agglomerative_single": agglomerative,
    "agglomerative_complete": agglomerative,
    "gprune": gprune,
    "visionzip": visionzip,
    "pru_merge": pru_merge,
    "pru_merge_plus": pru_merge_plus,
    "hiprune": hiprune,
    "hiprune_half": hiprune,
    "holov": holov,
    "apet": apet,
    "maximal_marginal_relevance": idpruner,
    "cls_attention": fastervlm,
    "cross_modal_similarity": trim,
}
"""By the name of the file in `golden`; of the files that share a run, the first one is timed."""
