"""DINOv2's weights by the names of facebookresearch/dinov2, of the transformers library and of timm."""

import functools

import numpy as np

from dml_jax.errors import UserError
from dml_jax.models.published import ROW, Layout, Rule, Table
from dml_jax.models.sources.transformer_rules import OURS, PRETRAINING, layer, norm, patches

_IGNORED = {
    r"(embeddings\.)?mask_token": "stands for masked patches in pre-training",
    r"head\..*": "classifies",
}


def _without_row(position: np.ndarray) -> np.ndarray:
    if position[0].any():
        raise UserError(
            "position: files of timm have no row for the class token where there are registers, and ours is not 0"
        )
    return position[None, 1:]


# timm has the class token's position added to the class token where there are registers.
_ADDED = Layout(lambda a: np.concatenate([np.zeros_like(a[0, :1]), a[0]]), _without_row)


@functools.cache
def tables(depth: int, registers: int, gated: bool) -> tuple[Table, ...]:
    """Returns the tables of all sources.

    Args:
      depth: the number of layers.
      registers: the number of tokens beside the class token.
      gated: True where the MLPs are SwiGLU.
    """
    # Checkpoints of pre-training have the layers in chunks, of which the two larger models have four.
    quarter = depth // 4
    chunks = [(f"blocks.{i // quarter}.{i}.", f"block_{i:02}") for i in range(quarter * 4)]
    authors = [
        _facebook("facebookresearch/dinov2", [("blocks.{}.", OURS)], gated),
        _facebook("facebookresearch/dinov2 in one chunk", [("blocks.0.{}.", OURS)], gated),
        _facebook("facebookresearch/dinov2 in four chunks", chunks, gated),
    ]
    named = [
        _transformers(gated),
        _transformers_state_dict(gated),
        *authors,
        *(table.within("backbone.", PRETRAINING) for table in authors),
    ]
    # Without registers and SwiGLU timm's names are the authors'.
    return (*named, _timm(registers > 0)) if registers or gated else tuple(named)


def _transformers(gated: bool) -> Table:
    layers = layer(
        "encoder.layer.{}.",
        norms=("norm1", "norm2"),
        qkv=tuple(f"attention.attention.{x}" for x in ("query", "key", "value")),
        out="attention.output.dense",
        mlp=("mlp.weights_in", "mlp.weights_out") if gated else ("mlp.fc1", "mlp.fc2"),
        scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    )
    return Table("transformers", (*_EMBEDDINGS, *layers), _IGNORED)


def _transformers_state_dict(gated: bool) -> Table:
    layers = layer(
        "encoder.layer.{}.",
        norms=("norm1", "norm2"),
        qkv=tuple(f"attention.{x}_proj" for x in "qkv"),
        out="attention.o_proj",
        mlp=(
            (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj") if gated else ("mlp.fc1", "mlp.fc2")
        ),
        scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    )
    return Table("transformers' state_dict()", (*_EMBEDDINGS, *layers), _IGNORED)


_EMBEDDINGS = (
    Rule("embeddings.cls_token", "cls_token", ROW),
    Rule("embeddings.position_embeddings", "position", ROW),
    Rule("embeddings.register_tokens", "registers", ROW),
    *patches("embeddings.patch_embeddings.projection"),
    *norm("layernorm", "norm"),
)


def _facebook(source: str, names: list[tuple[str, str]], gated: bool) -> Table:
    mlp = ("mlp.w12", "mlp.w3") if gated else ("mlp.fc1", "mlp.fc2")
    rules = [
        Rule("cls_token", "cls_token", ROW),
        Rule("pos_embed", "position", ROW),
        Rule("register_tokens", "registers", ROW),
        *patches("patch_embed.proj"),
        *norm("norm", "norm"),
    ]
    for theirs, ours in names:
        rules += _layer(theirs, ours, mlp)
    return Table(source, tuple(rules), _IGNORED)


def _timm(registers: bool) -> Table:
    rules = (
        Rule("cls_token", "cls_token", ROW),
        Rule("pos_embed", "position", _ADDED if registers else ROW),
        Rule("reg_token", "registers", ROW),
        *patches("patch_embed.proj"),
        *norm("norm", "norm"),
        *_layer("blocks.{}.", OURS, ("mlp.fc1", "mlp.fc2")),
    )
    return Table("timm", rules, _IGNORED)


def _layer(theirs: str, ours: str, mlp: tuple[str, str]) -> tuple[Rule, ...]:
    return layer(
        theirs,
        norms=("norm1", "norm2"),
        qkv="attn.qkv",
        out="attn.proj",
        mlp=mlp,
        scales=("ls1.gamma", "ls2.gamma"),
        ours=ours,
    )
