"""What `torch.save` pickles, read by an unpickler that knows nothing but tensors.

No function of a pickle is ever called but the few of `GLOBALS`, which are ours: they only write down where a tensor's
numbers lie. Of another name, such as `os.system`, not even the module is imported.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

# The names of PyTorch's types, and NumPy's.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name, None) or name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}


class Refused(Exception):
    """A pickle that is not of tensors; the message says what is in it."""


class Storage(NamedTuple):
    """A run of numbers that tensors share.

    Attributes:
      key: names it in the file.
      dtype: of its elements, a key of `DTYPES`.
      start: its first byte.
      size: its bytes.
    """

    key: str
    dtype: str
    start: int
    size: int


class Tensor(NamedTuple):
    """Where the elements of a tensor lie.

    Attributes:
      storage: in which they are.
      dtype: a key of `DTYPES`.
      offset: of the first, in elements.
      shape: of the tensor.
      strides: between neighbours on each axis, in elements.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, buffer: Any, first: int, size: int, *, swap: bool = False) -> np.ndarray:
        """Returns a copy of the elements.

        Args:
          buffer: the file.
          first: the first byte of the storage in it.
          size: the bytes of the storage that are there.
          swap: whether their order within a number is another than this machine's.

        Raises:
          ValueError: they do not lie within the storage, or are more than the file has bytes.
        """
        dtype = DTYPES[self.dtype]
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if self.storage.start + (last + 1) * dtype.itemsize > size:
            raise ValueError("its elements lie beyond the end of its data")
        # An axis of stride 0 repeats what is there; a hostile file could ask for any amount of memory by it.
        if math.prod(self.shape) * dtype.itemsize > len(buffer):
            raise ValueError(f"shape {self.shape} has more elements than the file")
        start = first + self.storage.start + self.offset * dtype.itemsize
        strides = [s * dtype.itemsize for s in self.strides]
        array = np.ndarray(self.shape, dtype, buffer, start, strides).copy("C")
        return array.byteswap() if swap else array


class Parameter:
    """A parameter as PyTorch before 0.4 pickles it: made empty, and given its tensor as state."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any = None, requires_grad: Any = True) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        if len(state) == 5:
            self.tensor = state[0]
        elif len(state) == 4:
            self.tensor = _tensor(*state)


class _Dict(dict[Any, Any]):
    """Stands for OrderedDict, whose attributes (`_metadata` of a state dict) are left out."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Ignored:
    """Stands for what a checkpoint holds beside tensors, such as the options of a run; it holds nothing."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class _Function(NamedTuple):
    """A function that a pickle may call but, unlike a function itself, cannot give attributes."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _Dtype(NamedTuple):
    """A type of elements or of storages."""

    name: str


def _numbers(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or not all(type(v) is int and v >= 0 for v in values):
        raise Refused("a tensor whose shape, strides or offset are no whole numbers of at least 0")
    return tuple(values)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *options: Any, dtype: Any = None
) -> Tensor:
    """Stands for `_rebuild_tensor` and `_rebuild_tensor_v2`; of the further arguments only the metadata matter."""
    if type(storage) is not Storage or (dtype is not None and type(dtype) is not _Dtype):
        raise Refused("a tensor without a storage or a type")
    shape, strides, [offset] = _numbers(shape), _numbers(strides), _numbers([offset])
    if len(shape) != len(strides) or len(shape) > 32:
        raise Refused(f"a tensor of {len(shape)} axes with {len(strides)} strides")
    if len(options) > 2 and options[2]:
        raise Refused("a tensor whose conjugate or negative bit is set")
    return Tensor(storage, dtype.name if dtype else storage.dtype, offset, shape, strides)


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, *options: Any) -> Tensor:
    grad, hooks, dtype, *metadata = options
    return _tensor(storage, offset, shape, strides, grad, hooks, *metadata, dtype=dtype)


def _typed(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """Stands for `_rebuild_from_type_v2`: a tensor with attributes, which are left out."""
    if type(function) is not _Function:
        raise Refused("a tensor of a type of its own")
    return function(*args)


def _first(value: Any, *_: Any) -> Any:
    return value


GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": _Dict,
    "torch.Size": _Function(_numbers),
    "torch._utils._rebuild_tensor": _Function(_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_tensor_v3": _Function(_tensor_v3),
    "torch._utils._rebuild_parameter": _Function(_first),
    "torch._utils._rebuild_parameter_with_state": _Function(_first),
    "torch._tensor._rebuild_from_type_v2": _Function(_typed),
    "torch.nn.parameter.Parameter": Parameter,
    **{f"torch.{name}": _Dtype(name) for name in DTYPES},
    **{
        f"{module}.{name}": _Dtype(dtype)
        for name, dtype in _STORAGES.items()
        for module in ("torch", "torch.cuda", "torch.storage")
    },
    # Epochs, rates and options that checkpoints of training hold.
    **dict.fromkeys(
        (
            *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
            *("_codecs.encode", "argparse.Namespace", "collections.Counter"),
            *("torch.device", "torch.Tensor"),
        ),
        _Ignored,
    ),
}


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, numbers, texts and `Tensor`s.

    Attributes:
      storages: that were named, by key.
    """

    def __init__(self, file: BinaryIO) -> None:
        # Files of Python 2 have texts as bytes.
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in GLOBALS:
            raise Refused(full)
        return GLOBALS[full]

    def persistent_load(self, pid: Any) -> Storage:
        # ("storage", type, key, device, elements), and before PyTorch 1.6 a view, (key, offset, elements) or None.
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise Refused("a reference to something that is no storage")
        _, kind, key, _, elements, view = (*pid, None)[:6]
        if type(kind) is not _Dtype or type(key) is not str:
            raise Refused("a storage without a type or a key")
        itemsize = DTYPES[kind.name].itemsize
        start, [elements] = 0, _numbers([elements])
        whole = self.storages.setdefault(key, Storage(key, kind.name, 0, elements * itemsize))
        if view is None:
            return whole._replace(dtype=kind.name)
        if type(view) is not tuple or len(view) != 3:
            raise Refused("a view of a storage without an offset")
        start, elements = (n * itemsize for n in _numbers(view[1:]))
        return Storage(key, kind.name, start, elements)


def load(file: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle from where a file stands, up to its end.

    Args:
      file: of bytes, that can be read and sought in.

    Returns:
      What it holds, with `Tensor`s for tensors, and the storages that it names by key.

    Raises:
      Refused: it names a function or class that is not in `GLOBALS`, or is of something else than tensors.
      ValueError: it is cut off or damaged.
    """
    start = file.tell()
    unpickler = _Unpickler(file)
    try:
        _check(file)
        file.seek(start)
        return unpickler.load(), unpickler.storages
    except Refused:
        raise
    # An unpickler raises errors of every kind where its input is no pickle.
    except Exception as error:
        raise ValueError(f"its pickle is cut off or damaged ({type(error).__name__})") from error


def loads(data: bytes) -> tuple[Any, dict[str, Storage]]:
    """Reads a pickle, as `load` does.

    Args:
      data: the pickle.
    """
    return load(io.BytesIO(data))


def _check(file: BinaryIO) -> None:
    """Goes through the operations of a pickle without any, for those that harm before a name is looked up."""
    for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
        # These take objects that other code registered for numbers, or brought along.
        if operation.name.startswith(("EXT", "NEXT_BUFFER", "READONLY_BUFFER")):
            raise Refused(f"the operation {operation.name}")
        # The table of remembered objects is made as long as its largest number asks.
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > number + 1:
            raise Refused(f"a table of {argument} objects")
