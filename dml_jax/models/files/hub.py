"""Weights of a model of the Hugging Face Hub, from its cache or downloaded."""

import pathlib
import re
from typing import Any
from urllib.parse import quote, unquote

from dml_jax.errors import UserError
from dml_jax.models.files import shards
from dml_jax.models.files.kinds import NAMES

_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<file>[^@]+))?"
)
_ACCEPTED = "accepted: hf://OWNER/NAME, hf://OWNER/NAME@REVISION, or either with /FILE"


def download(address: str) -> str:
    """Returns the path of a model's weights on this machine, which are downloaded if the cache of the Hub has them not.

    Where the cache has the model the network is not asked, so that a branch that has moved on is not noticed.

    Args:
      address: `hf://OWNER/NAME[@REVISION][/FILE]`, a "/" in REVISION as "%2F"; without FILE it is `model.safetensors`,
        or its index with all shards, or `pytorch_model.bin`, or the index of that.

    Raises:
      UserError: an address of another form; the package `huggingface_hub` is missing; the model, the revision or
        the file does not exist, may not be read, or cannot be reached. The last says how to do it by hand.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or ".." in (found["file"] or "").split("/"):
        raise UserError(f"weights {address!r} are no address of the Hub; {_ACCEPTED}")
    repo, file = found["repo"], found["file"]
    revision = unquote(found["revision"]) if found["revision"] else None
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            f'weights {address!r} need the package huggingface_hub: pip install "dml_jax[hub]"; '
            f"{_by_hand('https://huggingface.co', repo, revision, file)}"
        ) from None
    names = (file,) if file else NAMES
    path = _cached(huggingface_hub, repo, names, revision)
    if path is None:
        path = _fetched(huggingface_hub, address, repo, names, revision)
    if path.endswith(".index.json"):
        folder = pathlib.Path(path).parent
        inside = file[: file.rindex("/") + 1] if file and "/" in file else ""
        commit = pathlib.Path(path).parents[inside.count("/")].name  # snapshots/COMMIT/FILE
        for shard in sorted(set(shards.files(path).values())):
            if not (folder / shard).exists():
                _fetched(huggingface_hub, address, repo, (inside + shard,), commit)
    return path


def _cached(hub: Any, repo: str, names: tuple[str, ...], revision: str | None) -> str | None:
    try:
        paths = [hub.try_to_load_from_cache(repo, name, revision=revision) for name in names]
    except (ValueError, OSError):  # what is wrong with the name, the download says
        return None
    # The cache also remembers that a model has no such file, by an object that is no path.
    return next((path for path in paths if isinstance(path, str)), None)


def _fetched(
    hub: Any, address: str, repo: str, names: tuple[str, ...], revision: str | None
) -> str:
    errors = hub.errors
    endpoint = hub.constants.ENDPOINT
    page = f"{endpoint}/{repo}"
    by_hand = _by_hand(endpoint, repo, revision, names[0])
    for name in names:
        try:
            return hub.hf_hub_download(repo, name, revision=revision)
        except errors.GatedRepoError:
            why = (
                f"its licence has to be accepted at {page} by an account of the Hub, and the account's token given by "
                f"`hf auth login` or HF_TOKEN; {by_hand}"
            )
        except errors.RepositoryNotFoundError:
            why = f"there is no {page}, or it needs a token (`hf auth login`, or HF_TOKEN); {_ACCEPTED}"
        except errors.RevisionNotFoundError:
            why = f"{page} has no revision {revision!r}; {_ACCEPTED}"
        except errors.LocalEntryNotFoundError as error:
            cause = error.__cause__ or error
            why = (
                f"{endpoint} cannot be reached ({_short(cause)}) and the cache {hub.constants.HF_HUB_CACHE} has them "
                f"not; {by_hand}"
            )
        except errors.EntryNotFoundError:
            if name != names[-1]:
                continue
            why = f"{page} has no {', '.join(names)} at revision {revision or 'main'}; {_ACCEPTED}"
        # Its errors of names are ValueErrors; those of the network differ with the package's version.
        except Exception as error:
            why = f"{_short(error)}; {by_hand}"
        break
    raise UserError(f"weights {address!r} cannot be had: {why}")


def _by_hand(endpoint: str, repo: str, revision: str | None, file: str | None) -> str:
    name = file or NAMES[0]
    url = f"{endpoint}/{repo}/resolve/{quote(revision or 'main', safe='')}/{name}"
    return (
        f"by hand: download {url} with a browser, put it in a folder of yours, and set "
        f"weights=FOLDER/{name.rpartition('/')[2]}"
    )


def _short(error: BaseException) -> str:
    """Returns the kind of an error and what it says, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
