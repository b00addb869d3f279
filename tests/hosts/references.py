"""What tests of hosts compare with: plans, and language models called with embeddings put together by hand."""

import inspect
from typing import Any

import torch

from crtc.hosts import Encoded
from crtc.hosts.family import own_positions
from crtc.hosts.visual import named
from crtc.merging import make_plan
from crtc.methods import Random
from crtc.tokens import DROPPED, Groups, Plan, Tokens
from tests.hosts.families import IMG, VID


def prune(tokens: Tokens) -> Plan:
    """A third of every group at random, at least one; groups of a batch keep different numbers."""
    sizes = tokens.group_sizes
    return Random(3)(tokens, (sizes // 3 + torch.arange(len(sizes)) % 2).clamp(min=1))


def cut(tokens: Tokens) -> Plan:
    """Every third token of every group: the same for a prompt alone and among others."""
    groups = Groups.of(tokens)
    place = torch.arange(groups.valid.shape[1])
    kept = torch.where(place % 3 == 0, place, DROPPED).expand_as(groups.index).masked_fill(~groups.valid, DROPPED)
    return make_plan(tokens, groups, kept, (kept == place).double())


def third(tokens: Tokens) -> Plan:
    """Every token joins the kept one before it, tokens 0, 3, 6 ... of its group, with shares that add up to one."""
    groups = Groups.of(tokens)
    place = torch.arange(groups.valid.shape[1])
    owner = (place - place % 3).expand_as(groups.index).masked_fill(~groups.valid, DROPPED)
    share = 1 + (place % 3).double().expand_as(groups.index)
    total = torch.zeros_like(share).scatter_add(1, owner.clamp(min=0), share * groups.valid)
    return make_plan(tokens, groups, owner, share / total.gather(1, owner.clamp(min=0)))


def rows_of(container: Any) -> torch.Tensor:
    """All rows of a tensor or a list of tensors."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in container])


def look(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the model's own feature functions give."""
    found = {}
    for name in ("image", "video"):
        given = {
            key: value
            for key, value in named(inputs).items()
            if key.startswith(("pixel", "image_", "video_", "spatial", "batch"))
        }
        if (inputs["input_ids"] == (IMG if name == "image" else VID)).any():
            function = getattr(model.base_model, f"get_{name}_features")
            mine = {key: value for key, value in given.items() if key in inspect.signature(function).parameters}
            found[name] = function(**mine, return_dict=True)
    return found


def merged_by_hand(
    model: Any, inputs: dict[str, Any], encoded: Encoded, plan: Plan, positions: torch.Tensor, row: int
) -> torch.Tensor:
    """Logits of one prompt without padding or cache, every merged embedding a loop over its members.

    Args:
        positions: of all columns of the full prompts.
    """
    name = model.config.model_type
    ids, base = inputs["input_ids"], model.base_model
    seen = look(model, inputs)
    content: dict[tuple[int, int], torch.Tensor] = {}
    deep: dict[tuple[int, int], list[torch.Tensor]] = {}
    for kind, output in seen.items():
        places = (ids == (IMG if kind == "image" else VID)).nonzero().tolist()
        layers = getattr(output, "deepstack_features", None) or []
        layers = [rows_of(layer[1] if isinstance(layer[0], int) else layer) for layer in layers]
        main = output.last_hidden_state if name in ("llama4", "fuyu") else output.pooler_output
        rows = layers[0] if main is None else rows_of(main)
        for number, (line, column) in enumerate(places):
            content[line, column] = rows[number]
            deep[line, column] = [layer[number] for layer in layers]
    tokens = encoded.tokens
    address = list(zip(tokens.sequence.tolist(), encoded.column.tolist(), strict=True))
    members = [(plan.slot == slot).nonzero()[:, 0].tolist() for slot in range(len(plan.kept))]
    slot_of = {int(token): slot for slot, token in enumerate(plan.kept)}
    table = model.get_input_embeddings()
    embeds, columns, stacks = [], [], []
    for token, (line, column) in enumerate(address):
        if line != row:
            continue
        if tokens.group[token] < 0:
            embeds.append(table(ids[line, column]))
        elif token in slot_of:
            mine = [(plan.weight[i], address[i]) for i in members[slot_of[token]]]
            merged = sum(weight * content[at] for weight, at in mine)
            embeds.append(base.multi_modal_projector(merged[None])[0] if name == "llama4" else merged)
            stacks.append([sum(w * deep[at][layer] for w, at in mine) for layer in range(len(deep[mine[0][1]]))])
        else:
            continue
        columns.append(column)
    visual = (ids[row, columns] == IMG) | (ids[row, columns] == VID)
    states = torch.stack([embed.to(table.weight.dtype) for embed in embeds])[None]
    own = positions.expand(*positions.shape[:-2], *ids.shape)
    own = own[-3:, row : row + 1, columns] if own.ndim == 3 else own[row : row + 1, columns]
    told: dict[str, Any] = {"attention_mask": torch.ones(1, len(columns), dtype=torch.long)}
    if name == "gemma3" or name == "gemma4":
        told["attention_mask"] = _open_images(visual, model.config.text_config.sliding_window)
        if name == "gemma4":  # images are open in its windowed layers only
            told["attention_mask"]["full_attention"] = torch.ones(1, 1, len(columns), len(columns)).tril().bool()
    elif name == "paligemma":
        told["attention_mask"] = torch.ones(1, 1, len(columns), len(columns), dtype=torch.bool)
    elif name == "ernie4_5_vl_moe":
        told["moe_mm_token_type_ids"] = visual.int()[None]
    elif name == "granite4_vision":
        states = states.masked_fill(visual[None, :, None], 0)
        numbers = [layer[0] for layer in seen["image"].deepstack_features]
        told["deepstack_features"] = {
            number: torch.stack([stack[layer] for stack in stacks]) for layer, number in enumerate(numbers)
        }
        told["vision_mask"] = visual[None, :, None]
    elif stacks and stacks[0]:
        told["visual_pos_masks"] = visual[None]
        told["deepstack_visual_embeds"] = [torch.stack([s[layer] for s in stacks]) for layer in range(len(stacks[0]))]
    if name == "gemma4":
        plain = torch.where(visual, model.config.text_config.pad_token_id, ids[row, columns])[None]
        told["per_layer_inputs"] = model.get_decoder().get_per_layer_inputs(plain, table(plain))
    output = model.get_decoder()(inputs_embeds=states, position_ids=own, use_cache=False, **told)
    logits = output.logits if name == "llama4" else model.lm_head(output.last_hidden_state)
    return (logits * getattr(model, "logit_scale", 1))[0]


def _open_images(visual: torch.Tensor, window: int) -> dict[str, torch.Tensor]:
    """Causal masks, open within an image, of full and of windowed layers."""
    first = visual.clone()
    first[1:] &= ~visual[:-1]
    image = first.long().cumsum(0).masked_fill(~visual, -1)
    number = torch.arange(len(visual))
    full = (number <= number[:, None]) | ((image == image[:, None]) & (image >= 0))
    return {
        "full_attention": full[None, None],
        "sliding_attention": (full & (number > number[:, None] - window))[None, None],
    }


def repacked(positions: torch.Tensor, mask: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Positions without the numbers that no kept token has, one prompt and one number at a time.

    Args:
        positions: [C, B, L].
        mask: columns that are no padding.
        kept: columns that stay.
    """
    packed = positions.clone()
    for row in range(len(mask)):
        before = set(positions[:, row, mask[row].bool()].flatten().tolist())
        after = set(positions[:, row, kept[row]].flatten().tolist())
        gone = sorted(before - after)
        for channel in range(len(positions)):
            for column in kept[row].nonzero()[:, 0].tolist():
                value = positions[channel, row, column]
                packed[channel, row, column] = value - sum(1 for number in gone if number < value)
    return packed


def doubled(model: Any, inputs: dict[str, Any], encoded: Encoded) -> tuple[dict[str, Any], Plan, torch.Tensor]:
    """Prompts in which every second visual token of a group repeats the one before it, in content and in position.

    Returns:
        Inputs with encoded images, the plan that leaves the repetitions out and keeps their mass, and the positions.
    """
    tokens = encoded.tokens
    groups = Groups.of(tokens)
    place = torch.arange(groups.valid.shape[1])
    owner = (place - place % 2).expand_as(groups.index).masked_fill(~groups.valid, DROPPED)
    plan = make_plan(tokens, groups, owner, (owner == place).double())
    first = torch.arange(len(tokens))
    first[tokens.candidates] = plan.kept[plan.slot[tokens.candidates]]
    position = own_positions(model, inputs, inputs["attention_mask"]).clone()
    position = position.expand(*position.shape[:-2], *inputs["input_ids"].shape).clone()
    line, column = tokens.sequence, encoded.column
    turning = position[1:] if position.ndim == 3 else position
    turning[..., line, column] = turning[..., line[first], column[first]]
    shown = look(model, inputs)
    for visual in encoded.visuals:
        number = torch.full((len(tokens),), -1)
        number[visual.place] = torch.arange(len(visual.place))
        repeat_rows(shown[visual.modality], number[first[visual.place]])
    rest = {name: value for name, value in encoded.inputs.items() if name != "position_ids"}
    return {**rest, "position_ids": position, "mm_encoder_outputs": shown}, plan, position


def repeat_rows(output: Any, index: torch.Tensor) -> None:
    """Replace all visual rows of a feature function's output by some of them, in containers of the same shapes."""

    def repeated(container: Any) -> Any:
        rows = rows_of([container] if isinstance(container, torch.Tensor) else container)[index]
        if isinstance(container, torch.Tensor):
            return rows.view_as(container)
        lengths = [part.shape[:-1].numel() for part in container]
        return type(container)(part.view_as(old) for part, old in zip(rows.split(lengths), container, strict=True))

    for name in ("pooler_output", "last_hidden_state"):
        value = getattr(output, name, None)
        if value is not None and sum(part.shape[:-1].numel() for part in value) == len(index):
            output[name] = repeated(value)
    if getattr(output, "deepstack_features", None) is not None:
        output["deepstack_features"] = [
            (layer[0], repeated(layer[1])) if isinstance(layer[0], int) else repeated(layer)
            for layer in output.deepstack_features
        ]
