"""Files of `torch.save`, in both of its formats.

Since PyTorch 1.6 a file is a zip file with the pickle `NAME/data.pkl` and a storage in each `NAME/data/KEY`, stored as
it is. Before that it was four pickles (a magic number, the format's version, sizes of C types, the object), a fifth
with the keys of the storages, and the storages in that order, each after the number of its elements.
"""

import mmap
import struct
import sys
import zipfile
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from dml_jax.errors import UserError
from dml_jax.models.files import pickled
from dml_jax.models.files.arrays import Readers, unreadable

KIND = "file of torch.save"
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
# Of several dicts of tensors in a file: what frameworks call the network, and what self-supervised training
# evaluates and publishes (the teacher, not its student).
NETWORKS = ("state_dict", "model", "teacher")


class _File(NamedTuple):
    """The object of a file, and where its storages lie.

    Attributes:
      found: the object.
      storages: the first byte and the number of bytes of each, by key.
      swap: whether the bytes of a number are in another order than this machine's.
    """

    found: Any
    storages: dict[str, tuple[int, int]]
    swap: bool = False


def readers(path: str, stack: ExitStack) -> Readers:
    """Returns a reader for every tensor of a file of `torch.save`, which is mapped into memory.

    Args:
      path: of the file.
      stack: closes it.

    Raises:
      UserError: it would do something else than build tensors when it is unpickled; it is cut off or damaged; it has no
        dict of tensors, or several among which none is known to be the network.
    """
    with open(path, "rb") as opened:
        file = stack.enter_context(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        read = _read_zip if file[:2] == b"PK" else _read_old
        content = read(file, path)
        tensors = state_dict(content.found)
    except pickled.Refused as error:
        raise UserError(
            f"weights {path!r} are refused, and nothing of them was executed: their pickle holds {error}; accepted: "
            "a dict of tensors, as torch.save(model.state_dict(), path) writes it"
        ) from error
    except (zipfile.BadZipFile, struct.error, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise unreadable(path, KIND, error) from error
    return {name: partial(_read, path, file, content, name, t) for name, t in tensors.items()}


def _read(
    path: str, file: mmap.mmap, content: _File, name: str, tensor: pickled.Tensor
) -> np.ndarray:
    try:
        first, size = content.storages[tensor.storage.key]
        return tensor.read(file, first, size, swap=content.swap)
    except KeyError:
        raise unreadable(path, KIND, f"{name!r}: its data are not in the file") from None
    except ValueError as error:
        raise unreadable(path, KIND, f"{name!r}: {error}") from error


def _read_zip(file: mmap.mmap, path: str) -> _File:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise pickled.Refused(
            "a TorchScript program; its weights alone are torch.jit.load(path).state_dict()"
        )
    places: dict[str, tuple[int, int]] = {}
    for entry in entries:
        name = entry.filename
        # torch.save compresses and encrypts nothing, so that the pages of a file can be mapped; no bomb can be built.
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(f"its entry {name[:80]!r} is compressed or encrypted")
        if name in places or name.startswith(("/", "\\")) or ".." in name.split("/"):
            raise ValueError(f"its entry {name[:80]!r} comes twice or is a path out of the file")
        names, extra = struct.unpack_from("<HH", file, entry.header_offset + 26)
        start = entry.header_offset + 30 + names + extra
        if start + entry.file_size > len(file):
            raise ValueError(f"its entry {name[:80]!r} ends beyond the file")
        places[name] = start, entry.file_size
    pickles = [name for name in places if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("it is a zip file without one NAME/data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    start, size = places[pickles[0]]
    found, _ = pickled.loads(file[start : start + size])
    storages = {
        name.removeprefix(f"{folder}data/"): place
        for name, place in places.items()
        if name.startswith(f"{folder}data/")
    }
    start, size = places.get(f"{folder}byteorder", (0, 0))
    order = file[start : start + size].decode("latin1") or "little"
    return _File(found, storages, order != sys.byteorder)


def _read_old(file: mmap.mmap, path: str) -> _File:
    stream = cast(Any, file)  # read, readline, seek and tell are all that a pickle needs
    if pickled.load(stream)[0] != _MAGIC:
        raise ValueError("it is a pickle, but not one that torch.save wrote")
    if pickled.load(stream)[0] != _VERSION:
        raise ValueError(f"its format is not version {_VERSION}")
    pickled.load(stream)
    found, named = pickled.load(stream)
    keys, _ = pickled.load(stream)
    storages: dict[str, tuple[int, int]] = {}
    place = file.tell()
    for key in keys if type(keys) is list else ():
        if type(key) is not str or key not in named:
            raise ValueError("it lists a storage that no tensor has")
        [elements] = struct.unpack_from("<q", file, place)
        size = elements * pickled.DTYPES[named[key].dtype].itemsize
        if not 0 <= size <= len(file) - place - 8:
            raise ValueError("it is cut off: a storage ends beyond the file")
        storages[key] = place + 8, size
        place += 8 + size
    return _File(found, storages)


def state_dict(found: Any, depth: int = 4) -> dict[str, pickled.Tensor]:
    """Returns the dict of tensors among what a file holds.

    That is the one under the first of `NETWORKS` that is there, at any depth; else the object itself; else the only
    dict of tensors in it. What else such a dict holds is left out.

    Args:
      found: the object of the file.
      depth: of the dicts that are looked into; one may hold itself.

    Raises:
      ValueError: there is none, or there are several.
    """
    if not isinstance(found, dict):
        raise ValueError(f"it holds no dict of tensors ({type(found).__name__})")
    inner = {k: v for k, v in found.items() if type(k) is str and _has_tensors(v, depth)}
    named = [key for key in NETWORKS if key in inner]
    tensors = _tensors(found)
    if named:
        return state_dict(inner[named[0]], depth - 1)
    if tensors:
        return tensors
    if len(inner) == 1:
        return state_dict(next(iter(inner.values())), depth - 1)
    keys = ", ".join(repr(key)[:40] for key in [*found][:8] if type(key) is str)
    several = "several dicts of tensors" if inner else "no dict of tensors"
    raise ValueError(f"it holds {several}, and none under {', '.join(NETWORKS)}: {keys}")


def _tensors(found: dict[Any, Any]) -> dict[str, pickled.Tensor]:
    plain = {
        k: getattr(v, "tensor", None) if type(v) is pickled.Parameter else v
        for k, v in found.items()
    }
    return {k: v for k, v in plain.items() if type(k) is str and type(v) is pickled.Tensor}


def _has_tensors(found: Any, depth: int) -> bool:
    """Whether an object is a dict of tensors, or has one under a name of `NETWORKS`."""
    if not isinstance(found, dict) or not depth:
        return False
    return bool(_tensors(found)) or any(_has_tensors(found.get(key), depth - 1) for key in NETWORKS)
