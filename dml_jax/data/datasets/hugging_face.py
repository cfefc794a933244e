"""Data sets of the Hugging Face Hub that are Parquet files."""

from typing import Any, Literal

from dml_jax.data.base import Source
from dml_jax.data.datasets.parquet import parquet
from dml_jax.errors import UserError
from dml_jax.parameters import Fraction, NonNegativeInt, PositiveFloat, checked


@checked("data set")
def hugging_face(
    split: Literal["train", "val", "test", "all"],
    *,
    dataset: str,
    folder: str = "",
    image: str = "image",
    label: str = "label",
    parent: str = "",
    by: Literal["class", "split"] = "class",
    fractions: tuple[Fraction, Fraction, Fraction] = (0.5, 0.1, 0.4),
    seed: NonNegativeInt = 0,
    memory: PositiveFloat = 4.0,
    channels: Literal[1, 3] = 3,
    exif: bool = True,
) -> Source:
    """Reads the Parquet files of a data set of the Hub, from its cache or downloaded.

    Where the cache has them the network is not asked. It needs the extras `hub` and `parquet`.

    Args:
      split: as in `parquet`, likewise the options that are not named here.
      dataset: "OWNER/NAME" or "OWNER/NAME@REVISION".
      folder: of the repository, where it holds several configurations; "" for all of it.
      image: see `parquet`.
      label: see `parquet`.
      parent: see `parquet`.
      by: see `parquet`.
      fractions: see `parquet`.
      seed: see `parquet`.
      memory: see `parquet`.
      channels: see `parquet`.
      exif: see `parquet`.

    Raises:
      UserError: a package is missing, the set cannot be had, or as `parquet`.

    Example:
      >>> hugging_face("train", dataset="flowers")
      Traceback (most recent call last):
      dml_jax.errors.UserError: hugging_face: dataset='flowers'; OWNER/NAME or OWNER/NAME@REVISION is accepted
    """
    place = _downloaded(dataset, folder)
    options: dict[str, Any] = dict(
        image=image,
        label=label,
        parent=parent,
        by=by,
        fractions=fractions,
        seed=seed,
        memory=memory,
    )
    return parquet(split, path=place, channels=channels, exif=exif, **options)


def _downloaded(dataset: str, folder: str) -> str:
    """Returns the folder of the files."""
    name, _, revision = dataset.partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(
            f"hugging_face: dataset={dataset!r}; OWNER/NAME or OWNER/NAME@REVISION is accepted"
        )
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UserError(
            "data set 'hugging_face' needs the package huggingface_hub: pip install 'dml_jax[hub,parquet]'"
        ) from None
    pattern = f"{folder.strip('/')}/*.parquet" if folder else "*.parquet"
    how: dict[str, Any] = dict(
        repo_type="dataset", revision=revision or None, allow_patterns=pattern
    )
    try:
        place = hub.snapshot_download(name, local_files_only=True, **how)
    except Exception:  # not in the cache: its errors differ with the package's version
        try:
            place = hub.snapshot_download(name, **how)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(
                f"hugging_face: {dataset!r} cannot be had ({type(error).__name__}: {text}); by hand: download its "
                ".parquet files, and use data.name='parquet' with data.path=FOLDER"
            ) from None
    found: str = place
    return f"{found}/{folder.strip('/')}" if folder else found
