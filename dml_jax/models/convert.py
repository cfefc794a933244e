"""Published weights by the names and in the layouts of our backbones."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dml_jax.errors import UserError
from dml_jax.models.weights import shorten

# Our path for each name in the file; a path that ends in "kernel" is a linear map's, which the file has as [out, in].
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "position",
    "embeddings.register_tokens": "registers",
    "embeddings.patch_embeddings.projection.weight": "patch/kernel",
    "embeddings.patch_embeddings.projection.bias": "patch/bias",
    "layernorm.weight": "norm/scale",
    "layernorm.bias": "norm/bias",
}
_LAYER = {
    "norm1.weight": "norm1/scale",
    "norm1.bias": "norm1/bias",
    "attention.attention.query.weight": "qkv/kernel",
    "attention.attention.query.bias": "qkv/bias",
    "attention.output.dense.weight": "out/kernel",
    "attention.output.dense.bias": "out/bias",
    "layer_scale1.lambda1": "scale1",
    "norm2.weight": "norm2/scale",
    "norm2.bias": "norm2/bias",
    "mlp.fc1.weight": "mlp_in/kernel",
    "mlp.fc1.bias": "mlp_in/bias",
    "mlp.fc2.weight": "mlp_out/kernel",
    "mlp.fc2.bias": "mlp_out/bias",
    "mlp.weights_in.weight": "mlp_in/kernel",
    "mlp.weights_in.bias": "mlp_in/bias",
    "mlp.weights_out.weight": "mlp_out/kernel",
    "mlp.weights_out.bias": "mlp_out/bias",
    "layer_scale2.lambda1": "scale2",
}


def import_dinov2(
    state_dict: Mapping[str, Any], source: str = "DINOv2 weights"
) -> dict[str, np.ndarray]:
    """Renames DINOv2's weights, as the transformers library publishes them, to our paths.

    Query, key and value become one map; the mask token, which only pre-training uses, is left out. Shapes are checked
    where the result is nested (`dml_jax.models.weights.unflatten_like`).

    Args:
      state_dict: arrays by the names in the published files, those of `Dinov2Model` or `Dinov2WithRegistersModel`.
      source: where they came from, as errors name it.

    Returns:
      `{"block_00/qkv/kernel": array, ...}`.

    Raises:
      UserError: a name that is in no such file, or a query without its key and value.

    Example:
      >>> list(import_dinov2({"encoder.layer.3.norm1.weight": np.ones(8)}))
      ['block_03/norm1/scale']
    """
    flat: dict[str, np.ndarray] = {}
    unknown: list[str] = []
    for name, array in state_dict.items():
        if name == "embeddings.mask_token" or ".key." in name or ".value." in name:
            continue
        if name in _TOP:
            path = _TOP[name]
        else:
            *stem, layer, rest = name.split(".", 3)
            if stem != ["encoder", "layer"] or not layer.isdigit() or rest not in _LAYER:
                unknown.append(name)
                continue
            path = f"block_{int(layer):02d}/{_LAYER[rest]}"
        if ".query." in name:
            array = _query_key_value(state_dict, name, source)
        array = np.asarray(array)
        if path == "patch/kernel":  # [out, 3, 14, 14] to [14 * 14 * 3, out]
            array = array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
        elif path.endswith("kernel"):
            array = array.T
        elif path in ("cls_token", "position", "registers"):
            array = array[0]
        flat[path] = array
    if unknown:
        raise UserError(f"{source}: names that are not DINOv2's: {shorten(unknown)}")
    return flat


def _query_key_value(state_dict: Mapping[str, Any], query: str, source: str) -> np.ndarray:
    """Returns the three maps that belong to a query's name as one."""
    parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
    missing = [p for p in parts if p not in state_dict]
    if missing:
        raise UserError(f"{source}: missing: {shorten(missing)}")
    return np.concatenate([np.asarray(state_dict[p]) for p in parts])
