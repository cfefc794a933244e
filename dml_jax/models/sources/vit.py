"""The plain ViT's weights by the names of timm, torchvision, the transformers library and google-research."""

import functools

from dml_jax.models.published import ROW, Rule, Table
from dml_jax.models.sources.flax_rules import flax_layer, flax_norm, flax_patches
from dml_jax.models.sources.transformer_rules import PRETRAINING, layer, norm, patches


@functools.cache
def tables(heads: int) -> tuple[Table, ...]:
    """Returns the tables of all sources.

    Args:
      heads: of the attention, which google-research's arrays have as an axis.
    """
    return (
        _timm(),
        _timm().within("backbone.", PRETRAINING),  # facebookresearch/dino
        _torchvision("torchvision", ("mlp.0", "mlp.3")),
        _torchvision("torchvision before 0.14", ("mlp.linear_1", "mlp.linear_2")),
        _transformers("transformers", ""),
        _transformers("transformers' ViTForImageClassification", "vit."),
        _transformers_state_dict(),
        _google(heads),
    )


def _timm() -> Table:
    rules = (
        Rule("cls_token", "cls_token", ROW),
        Rule("pos_embed", "position", ROW),
        *patches("patch_embed.proj"),
        *norm("norm", "norm"),
        *layer(
            "blocks.{}.",
            norms=("norm1", "norm2"),
            qkv="attn.qkv",
            out="attn.proj",
            mlp=("mlp.fc1", "mlp.fc2"),
        ),
    )
    return Table("timm", rules, {r"(head|pre_logits)\..*": "classifies"})


def _torchvision(source: str, mlp: tuple[str, str]) -> Table:
    rules = (
        Rule("class_token", "cls_token", ROW),
        Rule("encoder.pos_embedding", "position", ROW),
        *patches("conv_proj"),
        *norm("encoder.ln", "norm"),
        *layer(
            "encoder.layers.encoder_layer_{}.",
            norms=("ln_1", "ln_2"),
            qkv="self_attention.in_proj_",
            out="self_attention.out_proj",
            mlp=mlp,
        ),
    )
    return Table(source, rules, {r"heads\..*": "classifies"})


def _embeddings(prefix: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{prefix}embeddings.cls_token", "cls_token", ROW),
        Rule(f"{prefix}embeddings.position_embeddings", "position", ROW),
        *patches(f"{prefix}embeddings.patch_embeddings.projection"),
        *norm(f"{prefix}layernorm", "norm"),
    )


_IGNORED = {
    r"(vit\.)?pooler\..*": "was trained with the classifier",
    r"classifier\..*": "classifies",
    r"(vit\.)?embeddings\.mask_token": "stands for masked patches in pre-training",
}


def _transformers(source: str, prefix: str) -> Table:
    layers = layer(
        f"{prefix}encoder.layer.{{}}.",
        norms=("layernorm_before", "layernorm_after"),
        qkv=tuple(f"attention.attention.{x}" for x in ("query", "key", "value")),
        out="attention.output.dense",
        mlp=("intermediate.dense", "output.dense"),
    )
    return Table(source, (*_embeddings(prefix), *layers), _IGNORED)


def _transformers_state_dict() -> Table:
    layers = layer(
        "layers.{}.",
        norms=("layernorm_before", "layernorm_after"),
        qkv=tuple(f"attention.{x}_proj" for x in "qkv"),
        out="attention.o_proj",
        mlp=("mlp.fc1", "mlp.fc2"),
    )
    return Table("transformers' state_dict()", (*_embeddings(""), *layers), _IGNORED)


def _google(heads: int) -> Table:
    rules = (
        Rule("cls", "cls_token", ROW),
        Rule("Transformer/posembed_input/pos_embedding", "position", ROW),
        *flax_patches("embedding"),
        *flax_norm("Transformer/encoder_norm", "norm"),
        *flax_layer(
            "Transformer/encoderblock_{}",
            ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
            heads,
        ),
    )
    return Table(
        "google-research/vision_transformer", rules, {r"(head|pre_logits)/.*": "classifies"}
    )
