"""ResNet by the names of torchvision and timm, and of the transformers library."""

import functools
from typing import Any

from dml_jax.models.published import Table
from dml_jax.models.sources.conv_rules import COUNTER, conv_norm

BLOCK = "stage_{}/block_{:02}"


@functools.cache
def tables() -> tuple[Table, ...]:
    """Returns the tables of all sources."""
    return _torchvision(), _transformers("resnet."), _transformers("")


def _torchvision() -> Table:
    rules = (
        *conv_norm("conv1", "bn1", "stem"),
        *conv_norm("layer{}.{}.conv{}", "layer{}.{}.bn{}", f"{BLOCK}/conv{{}}"),
        *conv_norm("layer{}.{}.downsample.0", "layer{}.{}.downsample.1", f"{BLOCK}/shortcut"),
    )
    return Table(
        "torchvision or timm", rules, {r"(fc|last_linear)\..*": "classifies ImageNet", **COUNTER}
    )


def _transformers(prefix: str) -> Table:
    """Their stages and convolutions are numbered from 0, torchvision's and ours from 1."""

    def unit(theirs: str, ours: str) -> tuple[Any, ...]:
        return conv_norm(f"{theirs}.convolution", f"{theirs}.normalization", ours)

    rules = [*unit(f"{prefix}embedder.embedder", "stem")]
    for stage in range(4):
        theirs = f"{prefix}encoder.stages.{stage}.layers.{{}}"
        ours = f"stage_{stage + 1}/block_{{:02}}"
        rules += unit(f"{theirs}.shortcut", f"{ours}/shortcut")
        for i in range(3):
            rules += unit(f"{theirs}.layer.{i}", f"{ours}/conv{i + 1}")
    name = "transformers" + ("" if prefix else "' ResNetModel")
    return Table(name, tuple(rules), {r"classifier\..*": "classifies ImageNet", **COUNTER})
