"""A trained model for other programs: published names, StableHLO, Orbax, ONNX; each is read again and compared."""

import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax import export as jax_export

from dml_jax import __version__, trees
from dml_jax.errors import UserError
from dml_jax.inference.encoder import Encoder
from dml_jax.inference.export import PLATFORMS, export, load_exported
from dml_jax.models import Model
from dml_jax.models.files import open_weights
from dml_jax.models.published import Rule, Table

# How far the embeddings of what was written may be from the model's, where another program computes them.
TOLERANCE = 1e-4
IMAGES = 3


def as_dml(encoder: Encoder, model: Model, out: pathlib.Path) -> None:
    """Writes one file for `dml_jax.load`: function, parameters and preparation (`inference.export`)."""
    export(encoder, out)
    again = load_exported(out)
    _compare(encoder, lambda images: again.apply(again.variables, images), out)


def as_stablehlo(encoder: Encoder, model: Model, out: pathlib.Path) -> None:
    """Writes the function of uint8 images `[batch, size, size, channels]`, any batch, that holds its parameters.

    `jax.export.deserialize(bytes).call(images)` runs it, on CPUs, CUDA GPUs and TPUs.
    """
    (batch,) = jax_export.symbolic_shape("batch")
    size, channels = encoder.image_size, encoder.channels
    function = jax.jit(lambda images: encoder.apply(encoder.variables, images))
    shape = jax.ShapeDtypeStruct((batch, size, size, channels), np.uint8)
    out.write_bytes(jax_export.export(function, platforms=PLATFORMS)(shape).serialize())
    again = jax_export.deserialize(bytearray(out.read_bytes()))
    _compare(encoder, again.call, out)


def as_safetensors(encoder: Encoder, model: Model, out: pathlib.Path) -> None:
    """Writes the backbone by the names of its first published source, the head's arrays as `head.*` after them.

    Low-rank adaptations are merged. A model without published files keeps its own paths.
    """
    from safetensors.numpy import save_file

    _, variables = model.merged(encoder.variables)
    backbone: dict[str, np.ndarray] = {}
    others: dict[str, np.ndarray] = {}
    for part in ("params", "state"):
        for path, array in trees.flatten(variables.get(part, {})).items():
            first, _, rest = path.partition("/")
            kept = backbone if first == "backbone" else others
            kept[rest if first == "backbone" else path] = np.asarray(array)
    table = published_table(model, backbone)
    arrays = table.save(backbone)
    named = {path.replace("/", "."): array for path, array in others.items()}
    # The format of the metadata is what transformers asks for.
    # save_file makes a file for its owner alone.
    out.touch()
    mode = out.stat().st_mode
    save_file({**arrays, **named}, out, metadata={"format": "pt", "source": table.source})
    out.chmod(mode)
    with open_weights(out) as file:
        read = {name: file[name] for name in file}
    for name, array in {**arrays, **named}.items():
        if not np.array_equal(read[name], array):
            raise RuntimeError(f"{out}: {name} is not what was written")
    found = dict(table.load({name: read[name] for name in arrays}, backbone, str(out)))
    if any(not np.array_equal(found[path], array) for path, array in backbone.items()):
        raise RuntimeError(f"{out}: the backbone is not what was written")


def published_table(model: Model, backbone: Mapping[str, Any]) -> Table:
    """Returns the first of a model's sources that has all arrays of a backbone; its own paths where none has.

    Args:
      model: the model.
      backbone: arrays by path.
    """
    for table in model.sources:
        if all(table.names(path) is not None for path in backbone):
            return table
    return Table("dml_jax", tuple(Rule(path, path) for path in backbone))


def as_orbax(encoder: Encoder, model: Model, out: pathlib.Path) -> None:
    """Writes `{"params", "state"}` as a folder of Orbax, in place of one that is there."""
    if out.is_file():
        raise UserError(f"--out: {out} is a file; a folder is accepted, or a path where nothing is")
    shutil.rmtree(out, ignore_errors=True)
    with ocp.StandardCheckpointer() as writer:
        writer.save(out.absolute(), encoder.variables)
    with ocp.StandardCheckpointer() as reader:
        again = reader.restore(out.absolute())
    for path, array in trees.leaves_by_path(encoder.variables).items():
        if not np.array_equal(trees.leaves_by_path(again)[path], array):
            raise RuntimeError(f"{out}: {path} is not what was written")


def as_onnx(encoder: Encoder, model: Model, out: pathlib.Path) -> None:
    """Writes the function of uint8 images as ONNX, by jax2onnx; onnxruntime runs it for the comparison.

    Raises:
      UserError: these packages are not installed.
    """
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"--format=onnx needs the packages jax2onnx and onnxruntime ({error}); "
            "pip install jax2onnx onnxruntime puts them there"
        ) from None
    size, channels = encoder.image_size, encoder.channels
    shape = jax.ShapeDtypeStruct(("B", size, size, channels), np.uint8)
    jax2onnx.to_onnx(
        lambda images: encoder.apply(encoder.variables, images),
        inputs=[shape],
        return_mode="file",
        output_path=str(out),
    )
    session = onnxruntime.InferenceSession(str(out))
    name = session.get_inputs()[0].name
    _compare(encoder, lambda images: session.run(None, {name: images})[0], out)


FORMATS: dict[str, Callable[[Encoder, Model, pathlib.Path], None]] = {
    "dml": as_dml,
    "stablehlo": as_stablehlo,
    "safetensors": as_safetensors,
    "orbax": as_orbax,
    "onnx": as_onnx,
}


def _compare(encoder: Encoder, again: Callable[[Any], Any], out: pathlib.Path) -> None:
    """Raises RuntimeError where what was read again gives other embeddings of some images than the model."""
    size, channels = encoder.image_size, encoder.channels
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, size, size, channels), np.uint8)
    expected = np.asarray(jax.jit(encoder.apply)(encoder.variables, images))
    worst = float(np.abs(np.asarray(again(images)) - expected).max() / np.abs(expected).max())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"{out} gives other embeddings: off by {worst:.1e} of the largest value")


def write_card(
    encoder: Encoder, config: Mapping[str, Any], out: pathlib.Path, metrics: Mapping[str, Any]
) -> pathlib.Path:
    """Writes a model card beside an exported model; returns its path.

    Args:
      encoder: the model.
      config: the configuration of its run, as a dict.
      out: what was exported.
      metrics: of evaluations of the run, by name.
    """
    base = config["model"].get("weights") or "none: it was trained from random parameters"
    steps = ", ".join(step["name"] for step in encoder.prepare) or "none"
    rows = [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    text = f"""# {out.name}

An embedding model, exported by dml_jax {__version__} on {time.strftime("%Y-%m-%d")} from step {encoder.about["step"]}
({encoder.about["checkpoint"]}) of a run of {config["train"]["epochs"]} epochs.

- Data: {config["data"]["name"]}, {len(encoder.classes)} classes trained on.
- Images: uint8 [batch, {encoder.image_size}, {encoder.image_size}, {encoder.channels}]; prepared by: {steps}.
- Embedding: {encoder.dim} numbers, float32, output `{encoder.about["embedding"]}`.
- Model: `{json.dumps(config["model"])}`
- Loss: `{json.dumps(config["loss"])}`, miner: `{json.dumps(config.get("miner"))}`
- Base weights: {base}. Their licence goes on to hold for what was trained from them.

| evaluation | value |
|---|---:|
{os.linesep.join(rows) or "| not evaluated | |"}
"""
    place = out.with_name(f"{out.name}.md")
    place.write_text(text, encoding="utf-8")
    return place
