"""Files of safetensors."""

import json
from contextlib import ExitStack
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from dml_jax.models.files.arrays import Readers, unreadable

KIND = "file of safetensors"
# The package's NumPy side has all other formats of whole bytes.
_FLOAT8 = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


def readers(path: str, stack: ExitStack) -> Readers:
    """Returns a reader for every array of a file of safetensors, which is mapped into memory.

    Args:
      path: of the file.
      stack: closes it.

    Raises:
      UserError: it is cut off or damaged; a reader raises it for a format that NumPy has not.
    """
    try:
        file = stack.enter_context(safetensors.safe_open(path, framework="np"))
        names = file.keys()
    except (safetensors.SafetensorError, OSError) as error:
        raise unreadable(path, KIND, error) from error
    return {name: partial(_read, path, file, name) for name in names}


def _read(path: str, file: Any, name: str) -> np.ndarray:
    try:
        dtype = file.get_slice(name).get_dtype()
        return _read_float8(path, name) if dtype in _FLOAT8 else file.get_tensor(name)
    except (safetensors.SafetensorError, OSError, AttributeError) as error:
        raise unreadable(path, KIND, f"{name!r}: {error}") from error


def _read_float8(path: str, name: str) -> np.ndarray:
    """Reads the bytes of an array where the header, which was checked when the file was opened, says they are."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        first, last = entry["data_offsets"]
        file.seek(8 + length + first)
        data = bytearray(file.read(last - first))
    return np.frombuffer(data, _FLOAT8[entry["dtype"]]).reshape(entry["shape"])
