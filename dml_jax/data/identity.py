"""Which images a split holds, to be stored and compared: a run is bound to the data that it began with."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from typing import TypedDict

from dml_jax.data.base import Source

# In a line of differences.
_SHOWN = 5


class ClassImages(TypedDict):
    """The images of a class.

    Attributes:
      images: how many there are.
      names: a hash of their names.
    """

    images: int
    names: str


def fingerprint(source: Source, root: str | os.PathLike[str] = "") -> dict[str, ClassImages]:
    """Returns what the images of each class are called, by the class's name, without decoding any.

    It is the same on every machine, and where the data were moved as a whole.

    Args:
      source: the split.
      root: the folder or the archive of the data, which is left out of the names.

    Example:
      >>> import numpy as np
      >>> from dml_jax.data.base import ArrayReader, Images
      >>> pixels = np.zeros((3, 8, 8, 1), np.uint8)
      >>> source = Images(np.array([0, 0, 1]), ("a", "b"), ["x/1", "x/2", "x/3"], ArrayReader(pixels))
      >>> fingerprint(source, "x")["a"]["images"]
      2
    """
    names: defaultdict[str, list[str]] = defaultdict(list)
    for i, label in enumerate(source.labels.tolist()):
        names[source.class_names[label]].append(relative_name(source.name(i), root))
    return {
        kind: {"images": len(found), "names": _hash(sorted(found))} for kind, found in names.items()
    }


def relative_name(name: str, root: str | os.PathLike[str]) -> str:
    """Returns the name of an image without the folder or the archive that it lies in.

    Args:
      name: of the image.
      root: the folder or the archive; "" for none. Of a list of images it is the list's folder.

    Example:
      >>> relative_name("photos/heron/1.jpg", "photos"), relative_name("all.tar:a/1.jpg", "all.tar")
      ('heron/1.jpg', 'a/1.jpg')
    """
    place = os.path.expanduser(os.fspath(root))
    if not place:
        return name
    for start in (place, os.path.dirname(place)):
        rest = name.removeprefix(start)
        if start and rest != name and rest[:1] in "/:\\":
            return rest.lstrip("/:\\")
    return name


def _hash(names: list[str]) -> str:
    text = "\0".join(names).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def differences(before: Mapping[str, ClassImages], now: Mapping[str, ClassImages]) -> str:
    """Returns in one line what differs between two fingerprints; "" where nothing does.

    Args:
      before: what `fingerprint` returned at first.
      now: what it returns now.

    Example:
      >>> differences({"a": {"images": 2, "names": "f3"}}, {"b": {"images": 2, "names": "0c"}})
      "class 'a' is gone; class 'b' is new"
      >>> differences({"a": {"images": 2, "names": "f3"}}, {"a": {"images": 3, "names": "0c"}})
      "class 'a' has 3 images in place of 2"
    """
    gone = [f"class {name!r} is gone" for name in before if name not in now]
    new = [f"class {name!r} is new" for name in now if name not in before]
    other = [
        f"class {name!r} has {now[name]['images']} images in place of {before[name]['images']}"
        if now[name]["images"] != before[name]["images"]
        else f"images of class {name!r} have other names"
        for name in before
        if name in now and before[name] != now[name]
    ]
    found = [*gone, *new, *other]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "; ".join([*found[:_SHOWN], *more])
