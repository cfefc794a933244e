"""The folder of a run: its configuration, and what may change in it when the run goes on.

WORKDIR/config.json      the whole configuration
WORKDIR/metrics.csv      loss, norms and validation by step; tensorboard/ and curves.png show the same
WORKDIR/data.json        which images it is about, by class, to notice where they change
WORKDIR/training_images.csv    image, label and true label, where not the whole training split is trained as it is
WORKDIR/code/            modules of one's own that the configuration names
WORKDIR/checkpoints/     the last state, and the best model by validation (`dml_jax.checkpoints`)
WORKDIR/evaluation/      what `dml evaluate` writes
WORKDIR/embeddings/      what `dml embed` writes
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from dml_jax import config as configs
from dml_jax import own_code, trees
from dml_jax.errors import UserError

# A run that goes on may change these: they do not decide what is computed, or they only say for how long.
MAY_CHANGE = (
    r"data\.(path|threads|workers|prefetch|on_error)",
    r"model\.weights",
    r"train\.(epochs|devices|fsdp|replicas|shard_above|shard_axes|references|log_steps|log_seconds)",
    r"train\.(checkpoints|checkpoint_steps|checkpoint_minutes|patience|profile|wandb|wandb_group|wandb_name|eval_epochs|eval_steps)",
    r"evaluation\.(after|at_end|batch_size|backend|block|kmeans|map)",
)


def create(folder: str | os.PathLike[str], option: str = "--workdir") -> pathlib.Path:
    """Makes a folder where it is missing, and returns its path, once it is certain that files can be written in it.

    Args:
      folder: the folder, of a run or of what another option names.
      option: the option, for errors.

    Raises:
      UserError: it cannot be made, or nothing can be written in it.
    """
    path = _made(folder, option)
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"{option}: nothing can be written in {folder}; a folder that can be written is accepted"
        )
    return path


def _made(folder: str | os.PathLike[str], option: str) -> pathlib.Path:
    path = pathlib.Path(folder).expanduser()
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{option}: {folder} is a file; a folder is accepted, or a path where none is yet"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{option}: the folder {folder} cannot be made: {error.strerror}; one that can be written is accepted"
        ) from None
    return path


def writable(file: str | os.PathLike[str], option: str) -> pathlib.Path:
    """Returns the path of a file that is to be written, once it is certain that it can be: before the work, not after.

    Args:
      file: the file.
      option: the option that names it, for errors.

    Raises:
      UserError: its folder cannot be made, or the file cannot be opened.
    """
    path = pathlib.Path(file).expanduser()
    _made(path.parent, option)
    was_there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise UserError(
            f"{option}: the file {path} cannot be written: {error.strerror}; one that can is accepted"
        ) from None
    if not was_there:
        path.unlink()
    return path


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder of a run, in which one process trains at a time; the system lets go of it when a process dies.

    Args:
      folder: the folder.

    Raises:
      UserError: another process trains in it, or its lock cannot be written.
    """
    lock = folder / ".lock"
    try:
        opened = lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--workdir: nothing can be written in {folder} ({lock.name}: {error.strerror}); a folder that can be "
            "written is accepted"
        ) from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is in use: {file.read() or 'another process'} trains in it; accepted: another --workdir, "
                "or this one when that has ended"
            ) from None
        except OSError as error:
            # A file system without locks, as some network ones are: there, nobody else can be seen.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}, since {time.ctime()},")
        file.flush()
        yield


@contextlib.contextmanager
def held(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Makes the folder of a run and holds it (`locked`), before anything is loaded.

    Where nothing was written in it, nothing is left at the end: neither its lock nor the folder, if that was made here.

    Args:
      folder: the folder.

    Raises:
      UserError: it cannot be made or written, or another process trains in it.
    """
    was_there = pathlib.Path(folder).expanduser().exists()
    path = create(folder)
    with locked(path):
        try:
            yield
        finally:
            if [file.name for file in path.iterdir()] == [".lock"]:
                (path / ".lock").unlink()
                if not was_there:
                    path.rmdir()


def write_config(workdir: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
    """Writes `config.json`.

    Args:
      workdir: the folder of the run.
      config: what `config.to_dict` returned.
    """
    path = pathlib.Path(workdir) / "config.json"
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_config(workdir: str | os.PathLike[str]) -> ConfigDict:
    """Returns the configuration of a run; what it names of one's own can be imported from then on.

    Args:
      workdir: the folder of the run.

    Raises:
      UserError: the folder holds no configuration, a damaged one, or one with fields that do not exist any more.
    """
    path = pathlib.Path(workdir) / "config.json"
    own_code.use(workdir)
    if not path.is_file():
        raise UserError(f"there is no {path}; a folder that training wrote is accepted")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"config {path} is damaged: {error}") from None
    try:
        return configs.from_dict(stored)
    except UserError as error:
        raise UserError(f"config {path}: {error}") from None


def evaluations(workdir: str | os.PathLike[str]) -> dict[str, float]:
    """Returns the numbers of the evaluations that lie in the folder of a run, by evaluation, embedding and metric.

    Args:
      workdir: the folder of the run.
    """
    found: dict[str, float] = {}
    for file in sorted(pathlib.Path(workdir, "evaluation").glob("*/metrics.json")):
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))["metrics"]
        except (ValueError, KeyError, OSError):  # cut off, or of an older version
            continue
        for embedding, metrics in rows.items():
            found |= {f"{file.parent.name}, {embedding}, {name}": v for name, v in metrics.items()}
    return found


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], workdir: str) -> None:
    """Checks that a run goes on with the configuration that it began with, but for the fields of `MAY_CHANGE`.

    A field that came after the run was stored had its default there.

    Args:
      stored: the configuration of the run, as `config.to_dict` returned it.
      given: the configuration that it is to go on with, likewise.
      workdir: the folder of the run.

    Raises:
      UserError: fields that differ, or that do not exist any more.
    """
    try:
        whole = configs.to_dict(configs.from_dict(stored))
    except UserError as error:
        raise UserError(f"config stored in {workdir}: {error}") from None
    there, here = trees.flatten(whole, "."), trees.flatten(given, ".")
    differ = [
        f"{k} ({_show(there, k)} there, {_show(here, k)} given)"
        for k in sorted({*there, *here})
        if _show(there, k) != _show(here, k) and not any(re.fullmatch(p, k) for p in MAY_CHANGE)
    ]
    if differ:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differ)}. Its own config, or another "
            "--workdir, is accepted"
        )


def going_on(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration of a run that goes on: the given one with the weights that the run began from.

    Args:
      stored: the configuration of the run, as `config.to_dict` returned it.
      given: the configuration that it is to go on with, likewise.
    """
    began_from = {k: v for k, v in stored["model"].items() if k == "weights"}
    return {**given, "model": {**given["model"], **began_from}}


def _show(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"
