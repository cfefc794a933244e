"""A trained model as one file: the compiled function, the parameters, and how images are prepared.

The file is a zip archive of `function.bin` (what `jax.export` serializes, for CPUs, CUDA GPUs and TPUs, with any batch
size), `variables.npz` and `about.json`. Reading it needs none of the code that made the model.
"""

import io
import json
import os
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from dml_jax import trees
from dml_jax.errors import UserError
from dml_jax.inference.encoder import Encoder

FUNCTION, VARIABLES, ABOUT = "function.bin", "variables.npz", "about.json"
PLATFORMS = ("cpu", "cuda", "tpu")


def export(encoder: Encoder, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a model to a file that `dml_jax.load` reads; returns its path.

    Args:
      encoder: the model.
      path: of the file; by custom it ends in .dml.

    Raises:
      OSError: the file cannot be written.
    """
    flat = {k: np.asarray(v) for k, v in trees.leaves_by_path(encoder.variables).items()}
    structure = jax.tree.structure(encoder.variables)
    names = list(flat)

    def function(flat: dict[str, Any], images: Any) -> Any:
        return encoder.apply(jax.tree.unflatten(structure, [flat[n] for n in names]), images)

    (batch,) = jax_export.symbolic_shape("batch")
    size, channels = encoder.image_size, encoder.channels
    exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(
        {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in flat.items()},
        jax.ShapeDtypeStruct((batch, size, size, channels), np.uint8),
    )
    arrays = io.BytesIO()
    np.savez(arrays, **flat)  # type: ignore[arg-type]  # numpy types no keyword but its own
    about = {
        "prepare": [dict(step) for step in encoder.prepare],
        "image_size": size,
        "channels": channels,
        "dim": encoder.dim,
        "classes": list(encoder.classes),
        "about": dict(encoder.about),
    }
    place = pathlib.Path(path).expanduser()
    beside = place.with_name(place.name + ".new")
    with zipfile.ZipFile(beside, "w") as archive:
        archive.writestr(FUNCTION, bytes(exported.serialize()))
        archive.writestr(VARIABLES, arrays.getvalue())
        archive.writestr(ABOUT, json.dumps(about, indent=2))
    os.replace(beside, place)
    return place


def load_exported(path: str | os.PathLike[str]) -> Encoder:
    """Reads a model that `export` wrote.

    Args:
      path: of the file.

    Raises:
      UserError: no such file, or one that is something else.

    Example:
      >>> load_exported("nowhere.dml")
      Traceback (most recent call last):
      dml_jax.errors.UserError: there is no nowhere.dml; a file that dml export wrote is accepted
    """
    place = pathlib.Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"there is no {place}; a file that dml export wrote is accepted")
    try:
        with zipfile.ZipFile(place) as archive:
            exported = jax_export.deserialize(bytearray(archive.read(FUNCTION)))
            variables = dict(np.load(io.BytesIO(archive.read(VARIABLES))))
            about = json.loads(archive.read(ABOUT))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UserError(
            f"{place} is not a file of dml export --format=dml ({error}); such a file is accepted, or the folder of "
            "a run. What --format=stablehlo writes is for jax.export.deserialize"
        ) from None
    return Encoder(
        apply=lambda variables, images: exported.call(variables, images),
        variables=variables,
        prepare=tuple(about["prepare"]),
        image_size=about["image_size"],
        channels=about["channels"],
        dim=about["dim"],
        classes=tuple(about["classes"]),
        about=about["about"],
    )
