"""CLIP's image towers by the names of OpenAI and OpenCLIP, of the transformers library and of timm."""

import functools

from dml_jax.models.published import LINEAR, ROW, Rule, Table
from dml_jax.models.sources.transformer_rules import AS_ROW, layer, norm, patches

_TEXT = "is of the texts' tower"
_PROJECTION = "is needed with projection=True only"


@functools.cache
def tables() -> tuple[Table, ...]:
    """Returns the tables of all sources."""
    return (
        _transformers("transformers", "vision_model."),
        _transformers("transformers' CLIPVisionModel since version 5", ""),
        _openai(),
        _timm(),
    )


def _transformers(source: str, prefix: str) -> Table:
    rules = (
        Rule(f"{prefix}embeddings.class_embedding", "cls_token", AS_ROW),
        Rule(f"{prefix}embeddings.position_embedding.weight", "position"),
        *patches(f"{prefix}embeddings.patch_embedding"),
        *norm(f"{prefix}pre_layrnorm", "norm_pre"),
        *norm(f"{prefix}post_layernorm", "norm"),
        *layer(
            f"{prefix}encoder.layers.{{}}.",
            norms=("layer_norm1", "layer_norm2"),
            qkv=tuple(f"self_attn.{x}_proj" for x in "qkv"),
            out="self_attn.out_proj",
            mlp=("mlp.fc1", "mlp.fc2"),
        ),
        Rule("visual_projection.weight", "projection/kernel", LINEAR),
    )
    ignored = {
        r"text_(model|projection)\..*": _TEXT,
        "logit_scale": "scales similarities of images and texts",
        r".*\.position_ids": "are 0, 1, 2, ...",
        r"visual_projection\.weight": _PROJECTION,
    }
    return Table(source, rules, ignored)


def _openai() -> Table:
    rules = (
        Rule("visual.class_embedding", "cls_token", AS_ROW),
        Rule("visual.positional_embedding", "position"),
        *patches("visual.conv1"),
        *norm("visual.ln_pre", "norm_pre"),
        *norm("visual.ln_post", "norm"),
        *layer(
            "visual.transformer.resblocks.{}.",
            norms=("ln_1", "ln_2"),
            qkv="attn.in_proj_",
            out="attn.out_proj",
            mlp=("mlp.c_fc", "mlp.c_proj"),
        ),
        Rule("visual.proj", "projection/kernel"),
    )
    ignored = {
        r"(text|transformer|token_embedding|ln_final|text_projection)\..*": _TEXT,
        "positional_embedding|text_projection": _TEXT,
        "logit_scale|logit_bias": "scales similarities of images and texts",
        "input_resolution|context_length|vocab_size": "follows from the shapes",
        r"visual\.proj": _PROJECTION,
    }
    return Table("OpenAI's CLIP or OpenCLIP", rules, ignored)


def _timm() -> Table:
    rules = (
        Rule("cls_token", "cls_token", ROW),
        Rule("pos_embed", "position", ROW),
        *patches("patch_embed.proj"),
        *norm("norm_pre", "norm_pre"),
        *norm("norm", "norm"),
        *layer(
            "blocks.{}.",
            norms=("norm1", "norm2"),
            qkv="attn.qkv",
            out="attn.proj",
            mlp=("mlp.fc1", "mlp.fc2"),
        ),
    )
    return Table(
        "timm",
        rules,
        {r"head\..*": "classifies, or projects (projection=True takes OpenCLIP's files)"},
    )
