"""An index of embeddings: named vectors to search in, which can be added, removed, stored and read."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import faiss
import numpy as np
from jaxtyping import Float, Int

from dml_jax.errors import UserError
from dml_jax.evaluation.search.neighbours import neighbours
from dml_jax.evaluation.vectors import normalize_rows

# The files of an index in its folder; MODEL is the model that made it, where it is stored, too.
EMBEDDINGS, ITEMS, ABOUT, MODEL = "embeddings.npy", "items.jsonl", "about.json", "model.dml"
Item = dict[str, Any]


class Found(NamedTuple):
    """What a search found, nearest first.

    Attributes:
      similarities: [q, k], cosine similarities.
      rows: [q, k], rows of the index.
      items: for each query k items of the index.
    """

    similarities: Float[np.ndarray, "q k"]
    rows: Int[np.ndarray, "q k"]
    items: list[list[Item]]


@dataclass
class Index:
    """Embeddings with an item each, which says at least what it is called.

    Attributes:
      embeddings: float32 [n, d].
      items: for each embedding a dict with `name`, all different, and where they are known `path`, `label`, `class`.
      about: what made the embeddings.

    Example:
      >>> index = Index.of(np.eye(3), ["a", "b", "c"])
      >>> index.add(np.array([[1.0, 1.0, 0.0]]), ["d"])
      >>> index.remove(["a"])
      >>> [item["name"] for item in index.search(np.array([[1.0, 0.9, 0.0]]), k=2).items[0]]
      ['d', 'b']
    """

    embeddings: Float[np.ndarray, "n d"]
    items: list[Item]
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.embeddings = _vectors(self.embeddings, None)
        if len(self.items) != len(self.embeddings):
            raise UserError(
                f"an index of {len(self.embeddings)} embeddings and {len(self.items)} items; as many are accepted"
            )

    @classmethod
    def of(
        cls,
        embeddings: Float[np.ndarray, "n d"],
        names: Iterable[str],
        labels: Sequence[str] | None = None,
    ) -> "Index":
        """Makes an index.

        Args:
          embeddings: the vectors.
          names: what each is called, all different; removing one asks for it.
          labels: the class of each, where it is known.

        Raises:
          UserError: arrays that do not fit each other, or a name that comes twice.
        """
        index = cls(np.zeros((0, np.shape(embeddings)[-1]), np.float32), [])
        index.add(embeddings, names, labels)
        return index

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        """What the embeddings are called."""
        return [item["name"] for item in self.items]

    def add(
        self,
        embeddings: Float[np.ndarray, "m d"],
        names: Iterable[str],
        labels: Sequence[str] | None = None,
    ) -> None:
        """Adds embeddings.

        Args:
          embeddings: the vectors, of the index's dimension.
          names: what each is called, different from all others in the index.
          labels: the class of each, where it is known.

        Raises:
          UserError: arrays that do not fit, or a name that the index has.
        """
        vectors, named = _vectors(embeddings, self.embeddings.shape[1]), list(names)
        if len(named) != len(vectors) or (labels is not None and len(labels) != len(vectors)):
            raise UserError(
                f"{len(vectors)} embeddings, {len(named)} names"
                f"{'' if labels is None else f', {len(labels)} labels'}; as many of each are accepted"
            )
        seen = set(self.names)
        for name in named:
            if name in seen:
                raise UserError(f"the name {name!r} comes twice; names of an index must differ")
            seen.add(name)
        classes: Sequence[Item] = [{}] * len(named)
        if labels is not None:
            classes = [{"class": str(label)} for label in labels]
        self.items += [{"name": n, **c} for n, c in zip(named, classes, strict=True)]
        self.embeddings = np.concatenate([self.embeddings, vectors])

    def remove(self, names: Iterable[str]) -> None:
        """Removes embeddings.

        Args:
          names: what they are called.

        Raises:
          UserError: a name that the index does not have; nothing is removed then.
        """
        place = {name: row for row, name in enumerate(self.names)}
        rows = []
        for name in names:
            if name not in place:
                raise UserError(
                    f"the index has no {name!r}; one of its {len(self)} names is accepted"
                )
            rows.append(place[name])
        kept = np.setdiff1d(np.arange(len(self)), rows)
        self.embeddings = self.embeddings[kept]
        self.items = [self.items[row] for row in kept]

    def search(
        self, queries: Float[np.ndarray, "q d"], k: int = 10, *, backend: str = "jax"
    ) -> Found:
        """Finds the k nearest embeddings to each query, exactly, by cosine similarity.

        Args:
          queries: vectors of the index's dimension.
          k: how many, at most as many as the index has.
          backend: `jax` or `faiss`.

        Raises:
          UserError: queries of another dimension, or k out of range.
        """
        vectors = _vectors(queries, self.embeddings.shape[1])
        if not 1 <= k <= len(self):
            raise UserError(f"k={k} of an index of {len(self)}; 1 to {len(self)} is accepted")
        far, rows = neighbours(vectors, self.embeddings, k, distance="cosine", backend=backend)
        return Found(1 - far, rows, [[self.items[row] for row in found] for found in rows])

    def save(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the index: embeddings.npy, items.jsonl (a line per row) and about.json; returns the folder.

        Args:
          folder: where to; it is made where it is missing.
        """
        path = pathlib.Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        np.save(path / EMBEDDINGS, self.embeddings)
        # A name that is not UTF-8 is kept by escapes, which come back as they were.
        lines = (json.dumps(item) + "\n" for item in self.items)
        (path / ITEMS).write_text("".join(lines), encoding="utf-8")
        (path / ABOUT).write_text(json.dumps(self.about, indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Index":
        """Reads an index that `save`, or `dml embed`, wrote.

        Args:
          folder: where it is.

        Raises:
          UserError: something is missing, damaged or does not fit.
        """
        where = pathlib.Path(folder).expanduser()
        for name in (EMBEDDINGS, ITEMS, ABOUT):
            if not (where / name).is_file():
                raise UserError(
                    f"there is no {where / name}; a folder that dml embed wrote is accepted"
                )
        try:
            embeddings = np.load(where / EMBEDDINGS)
            lines = (where / ITEMS).read_text(encoding="utf-8").splitlines()
            items = [json.loads(line) for line in lines]
            about = json.loads((where / ABOUT).read_text(encoding="utf-8"))
        except (ValueError, EOFError) as error:
            raise UserError(f"{where} is damaged ({error}); embed again") from None
        if len(items) != len(embeddings):
            raise UserError(
                f"{where} has {len(embeddings)} embeddings and {len(items)} lines of items; embed again"
            )
        return cls(embeddings, items, about)

    def write_faiss(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `faiss.read_index` opens: an exact index of the L2-normalised vectors by inner product.

        Rows are those of this index; faiss keeps no names.

        Args:
          path: of the file.
        """
        found = faiss.IndexFlatIP(self.embeddings.shape[1])
        found.add(normalize_rows(self.embeddings))
        faiss.write_index(found, os.path.expanduser(os.fspath(path)))

    @classmethod
    def read_faiss(
        cls, path: str | os.PathLike[str], items: Sequence[Mapping[str, Any]] | None = None
    ) -> "Index":
        """Reads the vectors of a faiss index that keeps them whole.

        Args:
          path: of the file.
          items: what each row is; by default rows are named "0", "1", ...

        Raises:
          UserError: no such file, or an index that does not keep its vectors.
        """
        file = os.path.expanduser(os.fspath(path))
        if not os.path.isfile(file):
            raise UserError(f"there is no {file}; a file of faiss.write_index is accepted")
        try:
            stored = faiss.read_index(file)
            vectors = stored.reconstruct_n(0, stored.ntotal)
        except RuntimeError as error:
            raise UserError(
                f"{file} cannot be read as a faiss index of whole vectors ({str(error).splitlines()[0]})"
            ) from None
        named = items or [{"name": str(row)} for row in range(len(vectors))]
        return cls(vectors, [dict(item) for item in named])


def _vectors(given: Any, dim: int | None) -> Float[np.ndarray, "n d"]:
    vectors = np.asarray(given, np.float32)
    if vectors.ndim != 2 or (dim is not None and vectors.shape[1] != dim):
        wanted = "[n, d]" if dim is None else f"[n, {dim}]"
        raise UserError(f"embeddings are an array {list(vectors.shape)}; {wanted} is accepted")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise UserError(f"embedding {row} is not finite")
    return vectors
