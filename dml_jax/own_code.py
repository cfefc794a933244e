"""Code of the user's own that a configuration names ("package.module:name"), stored with the run.

The modules are copied to `WORKDIR/code` when the run begins, with those of their neighbours that they import, so that
the run can be evaluated where they are not. Where a module can be imported, it is; the copy stands in for one that
cannot.
"""

import os
import pathlib
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from typing import Any

FOLDER = "code"


def store(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Copies the modules that a configuration names; those that are installed are left out.

    Args:
      workdir: the folder of the run.
      config: what `config.to_dict` returned; what it names was imported.
    """
    for module in {name.partition(":")[0] for name in _names(config)}:
        root = _root(module)
        if root is None:
            continue
        for file in _loaded_below(root):
            place = workdir / FOLDER / file.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists() or not place.samefile(file):
                shutil.copyfile(file, place)


def use(workdir: str | os.PathLike[str]) -> None:
    """Lets modules that cannot be found elsewhere be imported from the copies in a run.

    Args:
      workdir: the folder of the run.
    """
    folder = pathlib.Path(workdir).resolve() / FOLDER
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))


def _names(section: Any) -> Iterator[str]:
    """Yields every "package.module:name" under a key `name`, or in the list of metrics."""
    if isinstance(section, Mapping):
        for key, value in section.items():
            if key in ("name", "metrics", "relation", "distance", "reducer", "schedule"):
                yield from _colons(value)
            if key != "path":
                yield from _names(value)
    elif isinstance(section, (list, tuple)):
        for value in section:
            yield from _names(value)


def _colons(value: Any) -> Iterator[str]:
    for text in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(text, str) and text.partition(":")[0] in sys.modules and ":" in text:
            yield text


def _root(module: str) -> pathlib.Path | None:
    """Returns the folder that holds a module's package; None for one that is installed or has no file."""
    top = sys.modules[module.partition(".")[0]]
    where = next(iter(getattr(top, "__path__", [])), None) or getattr(top, "__file__", None)
    if where is None:
        return None
    root = pathlib.Path(where).resolve().parent
    return None if _is_installed(root) else root


def _is_installed(path: pathlib.Path) -> bool:
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    return any(path.is_relative_to(pathlib.Path(place).resolve()) for place in places)


def _loaded_below(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of the modules that are loaded from a folder, without those of environments inside of it."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    paths = {pathlib.Path(file).resolve() for file in files if file and file.endswith(".py")}
    library = pathlib.Path(__file__).resolve().parent
    return sorted(
        path
        for path in paths
        if path.is_relative_to(root)
        and not _is_installed(path)
        and not path.is_relative_to(library)
        and not path.is_relative_to(library.parent / "configs")
    )
