"""DINOv3's weights by the names of facebookresearch/dinov3, of the transformers library and of timm."""

import functools

import numpy as np

from dml_jax.models.published import ROW, Layout, Rule, Table
from dml_jax.models.sources.transformer_rules import OURS, PRETRAINING, layer, norm, patches

_MASK = {r"(embeddings\.)?mask_token": "stands for masked patches in pre-training"}


def _without_keys(bias: np.ndarray) -> np.ndarray:
    query, _, value = np.split(bias, 3)
    return np.concatenate([query, value])


def _with_keys(bias: np.ndarray) -> np.ndarray:
    query, value = np.split(bias, 2)
    return np.concatenate([query, np.zeros_like(query), value])


# A bias of queries, keys and values, of which a mask of the network leaves that of the keys out.
_MASKED = Layout(_without_keys, _with_keys)


@functools.cache
def tables(gated: bool) -> tuple[Table, ...]:
    """Returns the tables of all sources.

    Args:
      gated: True where the MLPs are SwiGLU.
    """
    return (
        _transformers("transformers", "layer.{}.", gated),
        _transformers("transformers' state_dict()", "model.layer.{}.", gated),
        _facebook(gated),
        _facebook(gated).within("backbone.", PRETRAINING),
        _timm(gated),
    )


def _transformers(source: str, layers: str, gated: bool) -> Table:
    biases = tuple(f"{layers}attention.{x}_proj.bias" for x in "qv")
    rules = (
        Rule("embeddings.cls_token", "cls_token", ROW),
        Rule("embeddings.register_tokens", "registers", ROW),
        *patches("embeddings.patch_embeddings"),
        *norm("norm", "norm"),
        *layer(
            layers,
            norms=("norm1", "norm2"),
            qkv=tuple(f"attention.{x}_proj" for x in "qkv"),
            qkv_bias=Rule(biases, f"{OURS}/qkv/bias"),
            out="attention.o_proj",
            mlp=(("mlp.gate_proj", "mlp.up_proj") if gated else "mlp.up_proj", "mlp.down_proj"),
            scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        ),
    )
    return Table(source, rules, _MASK)


def _facebook(gated: bool) -> Table:
    mlp = (("mlp.w1", "mlp.w2"), "mlp.w3") if gated else ("mlp.fc1", "mlp.fc2")
    rules = (
        Rule("cls_token", "cls_token", ROW),
        Rule("storage_tokens", "registers", ROW),
        *patches("patch_embed.proj"),
        *norm("norm", "norm"),
        *layer(
            "blocks.{}.",
            norms=("norm1", "norm2"),
            qkv="attn.qkv",
            qkv_bias=Rule("blocks.{}.attn.qkv.bias", f"{OURS}/qkv/bias", _MASKED),
            out="attn.proj",
            mlp=mlp,
            scales=("ls1.gamma", "ls2.gamma"),
        ),
    )
    ignored = {
        r"blocks\.\d+\.attn\.qkv\.bias_mask": "is 0 for keys and 1 for the others",
        r"rope_embed\.periods": "follows from the width",
        r"local_cls_norm\..*": "normalises small crops in pre-training",
    }
    return Table("facebookresearch/dinov3", rules, {**_MASK, **ignored})


def _timm(gated: bool) -> Table:
    biases = tuple(f"blocks.{{}}.attn.{x}_bias" for x in "qv")
    rules = (
        Rule("cls_token", "cls_token", ROW),
        Rule("reg_token", "registers", ROW),
        *patches("patch_embed.proj"),
        *norm("norm", "norm"),
        *layer(
            "blocks.{}.",
            norms=("norm1", "norm2"),
            qkv="attn.qkv",
            qkv_bias=Rule(biases, f"{OURS}/qkv/bias"),
            out="attn.proj",
            mlp=(("mlp.fc1_g", "mlp.fc1_x") if gated else "mlp.fc1", "mlp.fc2"),
            scales=("gamma_1", "gamma_2"),
        ),
    )
    return Table("timm", rules, {r"head\..*": "classifies"})
