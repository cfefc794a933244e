"""GoogLeNet by the names of torchvision."""

import functools

from dml_jax.models.published import Rule, Table
from dml_jax.models.sources.conv_rules import COUNTER, conv_norm

BRANCHES = {
    "branch1": "conv1x1",
    "branch2.0": "conv3x3_reduce",
    "branch2.1": "conv3x3",
    "branch3.0": "conv5x5_reduce",
    "branch3.1": "conv5x5",
    "branch4.1": "pool_proj",
}


@functools.cache
def tables() -> tuple[Table, ...]:
    """Returns the tables of all sources."""
    units = {name: name for name in ("conv1", "conv2", "conv3")}
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        for theirs, ours in BRANCHES.items():
            units[f"inception{block}.{theirs}"] = f"inception_{block}/{ours}"
    rules: list[Rule] = []
    for theirs, ours in units.items():
        rules += conv_norm(f"{theirs}.conv", f"{theirs}.bn", ours)
    ignored = {
        r"aux[12]\..*": "is an auxiliary head, of training on ImageNet",
        r"(fc|last_linear)\..*": "classifies ImageNet",
        **COUNTER,
    }
    return (Table("torchvision", tuple(rules), ignored),)
