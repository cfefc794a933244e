"""SigLIP's image towers by the names of the transformers library, of google-research/big_vision and of timm."""

import functools
from dataclasses import replace

from dml_jax.models.published import LINEAR, ROW, Rule, Table
from dml_jax.models.sources.flax_rules import (
    flax_attention,
    flax_layer,
    flax_mlp,
    flax_norm,
    flax_patches,
)
from dml_jax.models.sources.transformer_rules import layer, linear, norm, patches

_TEXT = "is of the texts' tower"
_POOL = "attention_pool"
_IMAGE = "params/img"


@functools.cache
def tables(heads: int) -> tuple[Table, ...]:
    """Returns the tables of all sources.

    Args:
      heads: of the attention, which big_vision's arrays have as an axis.
    """
    return (
        _transformers("transformers", "vision_model."),
        _transformers("transformers' SiglipVisionModel since version 5", ""),
        _big_vision(heads),
        _big_vision_scan(heads),
        _timm("timm", ""),
        _timm("OpenCLIP", "visual.trunk."),
    )


def _transformers(source: str, prefix: str) -> Table:
    rules = (
        Rule(f"{prefix}embeddings.position_embedding.weight", "position"),
        *patches(f"{prefix}embeddings.patch_embedding"),
        *norm(f"{prefix}post_layernorm", "norm"),
        *layer(
            f"{prefix}encoder.layers.{{}}.",
            norms=("layer_norm1", "layer_norm2"),
            qkv=tuple(f"self_attn.{x}_proj" for x in "qkv"),
            out="self_attn.out_proj",
            mlp=("mlp.fc1", "mlp.fc2"),
        ),
        Rule(f"{prefix}head.probe", f"{_POOL}/probe", ROW),
        *linear(f"{prefix}head.attention.in_proj_", f"{_POOL}/qkv"),
        *linear(f"{prefix}head.attention.out_proj", f"{_POOL}/out"),
        *norm(f"{prefix}head.layernorm", f"{_POOL}/norm"),
        *linear(f"{prefix}head.mlp.fc1", f"{_POOL}/mlp_in"),
        *linear(f"{prefix}head.mlp.fc2", f"{_POOL}/mlp_out"),
    )
    ignored = {
        r"text_model\..*": _TEXT,
        "logit_scale|logit_bias": "scales similarities of images and texts",
        r".*\.position_ids": "are 0, 1, 2, ...",
    }
    return Table(source, rules, ignored)


def _big_vision(heads: int) -> Table:
    layers = _flax_layers("encoderblock_{}", heads)
    return _big_vision_of("google-research/big_vision", layers, heads)


def _big_vision_scan(heads: int) -> Table:
    layers = tuple(replace(rule, stacked=True) for rule in _flax_layers("encoderblock", heads))
    return _big_vision_of("google-research/big_vision with stacked layers", layers, heads)


def _flax_layers(name: str, heads: int) -> tuple[Rule, ...]:
    modules = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    return flax_layer(f"{_IMAGE}/Transformer/{name}", modules, heads)


def _big_vision_of(source: str, layers: tuple[Rule, ...], heads: int) -> Table:
    pool = f"{_IMAGE}/MAPHead_0"
    rules = (
        Rule(f"{_IMAGE}/pos_embedding", "position", ROW),
        *flax_patches(f"{_IMAGE}/embedding"),
        *flax_norm(f"{_IMAGE}/Transformer/encoder_norm", "norm"),
        *layers,
        Rule(f"{pool}/probe", f"{_POOL}/probe", ROW),
        *flax_attention(f"{pool}/MultiHeadDotProductAttention_0", _POOL, heads),
        *flax_norm(f"{pool}/LayerNorm_0", f"{_POOL}/norm"),
        *flax_mlp(f"{pool}/MlpBlock_0", _POOL),
    )
    ignored = {
        "params/txt/.*": _TEXT,
        "params/(t|b)": "scales similarities of images and texts",
    }
    return Table(source, rules, ignored)


def _timm(source: str, prefix: str) -> Table:
    pool = f"{prefix}attn_pool"
    maps = {array: (f"{pool}.q.{array}", f"{pool}.kv.{array}") for array in ("weight", "bias")}
    rules = (
        Rule(f"{prefix}pos_embed", "position", ROW),
        *patches(f"{prefix}patch_embed.proj"),
        *norm(f"{prefix}norm", "norm"),
        *layer(
            f"{prefix}blocks.{{}}.",
            norms=("norm1", "norm2"),
            qkv="attn.qkv",
            out="attn.proj",
            mlp=("mlp.fc1", "mlp.fc2"),
        ),
        Rule(f"{pool}.latent", f"{_POOL}/probe", ROW),
        Rule(maps["weight"], f"{_POOL}/qkv/kernel", LINEAR, shares=(1, 2)),
        Rule(maps["bias"], f"{_POOL}/qkv/bias", shares=(1, 2)),
        *linear(f"{pool}.proj", f"{_POOL}/out"),
        *norm(f"{pool}.norm", f"{_POOL}/norm"),
        *linear(f"{pool}.mlp.fc1", f"{_POOL}/mlp_in"),
        *linear(f"{pool}.mlp.fc2", f"{_POOL}/mlp_out"),
    )
    ignored = {
        r"text\..*": _TEXT,
        "logit_scale|logit_bias": "scales similarities of images and texts",
    }
    return Table(source, rules, ignored)
