"""What a file or a folder is, by its content."""

import json
import os
import zipfile
from collections.abc import Callable
from contextlib import ExitStack

from dml_jax.errors import UserError
from dml_jax.models.files import checkpoint, npz, safetensor, shards, torch_file
from dml_jax.models.files.arrays import ACCEPTED, Readers, unreadable, without_prefixes

# In a folder, and in a model of the Hub, the first of these that is there.
NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ENDINGS = (".safetensors", ".index.json", ".pth", ".pt", ".bin", ".npz")
# How files begin that are saved in the place of weights, or are weights that cannot be read.
_OTHERS = {
    b"version https://git-lfs.github.com/spec/": (
        "a pointer of Git LFS, not the file that it stands for: `git lfs pull` in its folder, or download the file"
    ),
    b"\x89HDF": "an HDF5 file (of Keras)",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"\x93NUMPY": "a single array of NumPy (.npy), without a name",
}


def open_path(path: str, stack: ExitStack) -> Readers:
    """Returns a reader for every array of a file or folder.

    Args:
      path: of the file or folder.
      stack: closes what is opened.

    Raises:
      UserError: there is nothing there, or nothing that can be read.
    """
    if os.path.isdir(path):
        found = _in_folder(path)
        if not isinstance(found, str):
            return checkpoint.readers(found, stack)
        path = found
    return without_prefixes(_open_file(path, stack))


def _in_folder(folder: str) -> str | checkpoint.epath.Path:
    try:
        have = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"weights: the folder {folder!r} cannot be read: {error.strerror}; {ACCEPTED}"
        ) from None
    for name in NAMES:
        if name in have:
            return os.path.join(folder, name)
    if (found := checkpoint.find(folder)) is not None:
        return found
    # Of an index and its shards the index is meant.
    files = [name for name in have if name.endswith(_ENDINGS)]
    files = [name for name in files if name.endswith(".index.json")] or files
    if len(files) != 1:
        what = f"several files of weights ({', '.join(files[:4])})" if files else "no weights"
        raise UserError(f"weights: the folder {folder!r} has {what}; {ACCEPTED}")
    return os.path.join(folder, files[0])


def _open_file(path: str, stack: ExitStack) -> Readers:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(512)
    except FileNotFoundError:
        raise UserError(f"weights {path!r} do not exist; {ACCEPTED}") from None
    except OSError as error:
        raise UserError(f"weights {path!r} cannot be read: {error.strerror}; {ACCEPTED}") from None
    return _reader(path, start, size)(path, stack)


def _reader(path: str, start: bytes, size: int) -> Callable[[str, ExitStack], Readers]:
    """Returns the function that opens a file which begins like this."""
    if not size:
        raise UserError(f"weights {path!r} are an empty file; {ACCEPTED}")
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return npz.readers if _is_npz(path) else torch_file.readers
    if start[8:9] == b"{":  # after the length of the header
        return safetensor.readers
    if start[:1] == b"\x80":  # PROTO, with which a pickle begins since protocol 2
        return torch_file.readers
    if start[:1] == b"{":
        return lambda path, stack: shards.readers(path, stack, _open_file)
    raise UserError(f"weights {path!r} are {_other(start)}; {ACCEPTED}")


def _is_npz(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise unreadable(path, "zip file (of torch.save or NumPy)", error) from error
    return all(name.endswith(".npy") for name in names)


def _other(start: bytes) -> str:
    """Returns what a file is that no reader takes, by how it begins."""
    for beginning, what in _OTHERS.items():
        if start.startswith(beginning):
            return what
    try:
        text = start.decode("utf-8", "strict" if len(start) < 512 else "ignore").strip()
    except UnicodeDecodeError:
        return "of no known kind"
    if text.lower().startswith(("<!doctype", "<html", "<?xml")):
        return (
            "a web page, saved in the place of the file (often a login or an error): "
            "download the file itself"
        )
    if not text.isprintable() and not all(c.isprintable() or c.isspace() for c in text):
        return "of no known kind"
    return f"a text file, which begins with {json.dumps(text[:40])}"
