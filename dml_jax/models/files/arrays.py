"""Arrays that are read one at a time, and what the readers of all formats share."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from dml_jax.errors import UserError

Readers = dict[str, Callable[[], np.ndarray]]
T = TypeVar("T")

ACCEPTED = (
    "accepted: a file of safetensors, of torch.save (.pth, .pt, .bin) or of NumPy (.npz), a folder with one, "
    "the folder of a run, or hf://OWNER/NAME"
)
# What wrapping a network in DataParallel, in a task's module or in torch.compile puts before the names.
PREFIXES = ("module.", "backbone.", "_orig_mod.")


class Arrays(Mapping[str, np.ndarray]):
    """Arrays by name, each read anew whenever it is asked for."""

    def __init__(self, readers: Readers) -> None:
        """Takes a function for each name that reads its array."""
        self._readers = readers

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._readers  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def without_prefixes(by_name: dict[str, T]) -> dict[str, T]:
    """Returns the dict without the prefixes of `PREFIXES` that all names have, several if need be.

    Args:
      by_name: anything by the names of arrays.

    Example:
      >>> without_prefixes({"module.backbone.a": 1, "module.backbone.b": 2})
      {'a': 1, 'b': 2}
      >>> without_prefixes({"backbone.a": 1, "head.a": 2})
      {'backbone.a': 1, 'head.a': 2}
    """
    while prefix := next(
        (p for p in PREFIXES if by_name and all(name.startswith(p) for name in by_name)), None
    ):
        by_name = {name.removeprefix(prefix): value for name, value in by_name.items()}
    return by_name


def unreadable(path: object, kind: str, why: object) -> UserError:
    """Returns the error of a file that looks like one of a kind and cannot be read as such.

    Args:
      path: of the file.
      kind: what it looks like.
      why: what is wrong, an error of a library or a text, which is put on one line.
    """
    text = " ".join(str(why).split()) or type(why).__name__
    return UserError(
        f"weights {str(path)!r} are no readable {kind}: {text}; accepted: the whole file, as it was published"
    )
