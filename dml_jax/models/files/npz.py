"""Arrays of an .npz file."""

import zipfile
import zlib
from contextlib import ExitStack
from functools import partial

import numpy as np

from dml_jax.models.files.arrays import Readers, unreadable

KIND = ".npz file of arrays"
# What NumPy and zipfile raise where a file is cut off, damaged or holds what is pickled.
_ERRORS = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)


def readers(path: str, stack: ExitStack) -> Readers:
    """Returns a reader for every array of an .npz file. What is pickled in it is not read.

    Args:
      path: of the file.
      stack: closes it.

    Raises:
      UserError: it cannot be read; readers raise it for their array.
    """
    try:
        file = stack.enter_context(np.load(path, allow_pickle=False))
    except _ERRORS as error:
        raise unreadable(path, KIND, error) from error
    return {name: partial(_read, path, file, name) for name in file.files}


def _read(path: str, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = file[name]
    except _ERRORS as error:
        raise unreadable(path, KIND, f"{name!r}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise unreadable(path, KIND, f"{name!r} is no array")
    return array
