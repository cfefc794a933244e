"""ConvNeXt by the names of torchvision, timm, facebookresearch and the transformers library."""

import functools
from collections.abc import Callable, Mapping

from dml_jax.models.published import SAME, Layout, Rule, Table
from dml_jax.models.sources.conv_rules import conv
from dml_jax.models.sources.transformer_rules import linear, norm

# A vector that the file has as [c, 1, 1].
COLUMN = Layout(lambda a: a[:, 0, 0], lambda a: a[:, None, None])
CLASSIFIES = "classifies ImageNet"


@functools.cache
def tables() -> tuple[Table, ...]:
    """Returns the tables of all sources."""
    return (
        _torchvision(),
        _timm(),
        _facebook(),
        _transformers("convnext."),
        _transformers(""),
        _dinov3(""),
        _dinov3("model."),
    )


def _table(
    source: str,
    *,
    stem: tuple[str, str],
    downsample: Callable[[int], str],
    block: Callable[[int], str],
    members: tuple[str, str, str, str, str],
    last: str,
    scale: Layout = SAME,
    ignored: Mapping[str, str],
) -> Table:
    """Makes a table.

    Args:
      source: its name.
      stem: convolution and norm.
      downsample: what lies before a stage, counted from 0, of which "0" is a norm and "1" a convolution.
      block: a block of a stage, with `{}` for its number.
      members: of a block: the convolution, the norm, the two linear maps and the learned scale.
      last: the norm after the last stage.
      scale: how a learned scale lies in the file.
      ignored: as `Table` has it.
    """
    rules = [*conv(stem[0], "stem", bias=True), *norm(stem[1], "stem_norm"), *norm(last, "norm")]
    for stage in range(4):
        ours = f"stage_{stage + 1}"
        if stage:
            rules += norm(f"{downsample(stage)}.0", f"{ours}/downsample_norm")
            rules += conv(f"{downsample(stage)}.1", f"{ours}/downsample", bias=True)
        depthwise, norm_name, mlp_in, mlp_out, gamma = (f"{block(stage)}.{m}" for m in members)
        ours = f"{ours}/block_{{:02}}"
        rules += conv(depthwise, f"{ours}/depthwise", bias=True)
        rules += norm(norm_name, f"{ours}/norm")
        rules += linear(mlp_in, f"{ours}/mlp_in")
        rules += linear(mlp_out, f"{ours}/mlp_out")
        rules.append(Rule(gamma, f"{ours}/scale", scale))
    return Table(source, tuple(rules), ignored)


def _torchvision() -> Table:
    """Stages and what lies before them are one sequence."""
    return _table(
        "torchvision",
        stem=("features.0.0", "features.0.1"),
        downsample=lambda stage: f"features.{2 * stage}",
        block=lambda stage: f"features.{2 * stage + 1}.{{}}",
        members=("block.0", "block.2", "block.3", "block.5", "layer_scale"),
        last="classifier.0",
        scale=COLUMN,
        ignored={r"classifier\.2\..*": CLASSIFIES},
    )


def _timm() -> Table:
    return _table(
        "timm",
        stem=("stem.0", "stem.1"),
        downsample=lambda stage: f"stages.{stage}.downsample",
        block=lambda stage: f"stages.{stage}.blocks.{{}}",
        members=("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma"),
        last="head.norm",
        ignored={r"head\.fc\..*": CLASSIFIES},
    )


def _facebook() -> Table:
    return _table(
        "facebookresearch (ConvNeXt or DINOv3)",
        stem=("downsample_layers.0.0", "downsample_layers.0.1"),
        downsample=lambda stage: f"downsample_layers.{stage}",
        block=lambda stage: f"stages.{stage}.{{}}",
        members=("dwconv", "norm", "pwconv1", "pwconv2", "gamma"),
        last="norm",
        ignored={r"head\..*": CLASSIFIES, r"norms\.3\..*": "is the last norm once more"},
    )


def _transformers(prefix: str) -> Table:
    return _table(
        "transformers" + ("" if prefix else "' ConvNextModel"),
        stem=(f"{prefix}embeddings.patch_embeddings", f"{prefix}embeddings.layernorm"),
        downsample=lambda stage: f"{prefix}encoder.stages.{stage}.downsampling_layer",
        block=lambda stage: f"{prefix}encoder.stages.{stage}.layers.{{}}",
        members=("dwconv", "layernorm", "pwconv1", "pwconv2", "layer_scale_parameter"),
        last=f"{prefix}layernorm",
        ignored={r"classifier\..*": CLASSIFIES},
    )


def _dinov3(prefix: str) -> Table:
    """Stage 0 has the stem in the place of what lies before the others."""
    return _table(
        "transformers' DINOv3ConvNextModel" + (" since version 5" if prefix else ""),
        stem=(f"{prefix}stages.0.downsample_layers.0", f"{prefix}stages.0.downsample_layers.1"),
        downsample=lambda stage: f"{prefix}stages.{stage}.downsample_layers",
        block=lambda stage: f"{prefix}stages.{stage}.layers.{{}}",
        members=("depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2", "gamma"),
        last="layer_norm",
        ignored={},
    )
