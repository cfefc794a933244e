"""BN-Inception by the names of the pretrainedmodels library."""

import functools

from dml_jax.models.published import Rule, Table
from dml_jax.models.sources.conv_rules import COUNTER, conv_norm

STEM = {"conv1_7x7_s2": "conv1", "conv2_3x3_reduce": "conv2_reduce", "conv2_3x3": "conv2"}
BRANCHES = {
    "1x1": "conv1x1",
    "3x3_reduce": "conv3x3_reduce",
    "3x3": "conv3x3",
    "double_3x3_reduce": "double_reduce",
    "double_3x3_1": "double_1",
    "double_3x3_2": "double_2",
    "pool_proj": "pool_proj",
}


@functools.cache
def tables() -> tuple[Table, ...]:
    """Returns the tables of all sources."""
    units = dict(STEM)
    for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        for theirs, ours in BRANCHES.items():
            units[f"inception_{block}_{theirs}"] = f"inception_{block}/{ours}"
    rules: list[Rule] = []
    for theirs, ours in units.items():
        rules += conv_norm(theirs, f"{theirs}_bn", ours, bias=True)
    ignored = {r"(last_linear|fc)\..*": "classifies ImageNet", **COUNTER}
    return (Table("pretrainedmodels", tuple(rules), ignored),)
