"""Evaluates embeddings that are stored in files, of this library or any other."""

import pathlib
import time
from typing import Any

import jax
import numpy as np

from dml_jax import evaluation, report
from dml_jax.data.base import DecodeError
from dml_jax.data.datasets.folder import files
from dml_jax.errors import UserError
from dml_jax.evaluation.evaluate import check_options
from dml_jax.evaluation.vectors import normalize_rows
from dml_jax.mesh import make_mesh
from dml_jax.stored_embeddings import Stored

Rows = dict[str, dict[str, Any]]


def evaluate_stored(
    queries: Stored, gallery: Stored | None, section: Any, folder: pathlib.Path, name: str
) -> tuple[Rows, list[pathlib.Path]]:
    """Computes the metrics, and writes a report; returns (a row of metrics, the files written).

    Args:
      queries: the embeddings.
      gallery: what is searched in place of the queries themselves; classes are the same where their names are.
      section: the section `evaluation` of a configuration; what needs a model or data is not used.
      folder: where the report goes.
      name: of what is evaluated.

    Raises:
      UserError: options that do not go together, another dimension, or a gallery of other classes.
    """
    options = {
        key: section[key] for key in ("distance", "average", "k", "backend", "kmeans", "block")
    }
    options["metrics"] = evaluation.metric_names(section.metrics)
    check_options(**options, relation=None, among="all", parents=False)
    names = list(queries.class_names)
    sets = [queries]
    labels = [queries.labels]
    given: dict[str, Any] = {}
    if gallery is not None:
        if gallery.embeddings.shape[1] != queries.embeddings.shape[1]:
            raise UserError(
                f"the gallery has {gallery.embeddings.shape[1]} dimensions and the queries "
                f"{queries.embeddings.shape[1]}; equal ones are accepted"
            )
        number = {kind: i for i, kind in enumerate(names)}
        names += [kind for kind in gallery.class_names if kind not in number]
        number = {kind: i for i, kind in enumerate(names)}
        labels.append(np.array([number[kind] for kind in gallery.class_names])[gallery.labels])
        if not np.isin(labels[1], labels[0]).any():
            raise UserError(
                f"the gallery has none of the queries' classes, {queries.class_names[0]!r} and so on"
            )
        sets.append(gallery)
        given = {"gallery": gallery.embeddings, "gallery_labels": labels[1]}
    found = evaluation.evaluate_embeddings(
        queries.embeddings, labels[0], normalize=section.normalize, **given, **options
    )
    rows: Rows = {name: found}
    joined = np.concatenate([s.embeddings for s in sets])
    vectors = normalize_rows(joined) if section.normalize else joined
    count = len(queries.labels)
    paths = [path for s in sets for path in (s.paths or [""] * len(s.labels))]

    def image(i: int) -> np.ndarray | None:
        try:
            return files([paths[i]], channels=3)[0]["image"] if paths[i] else None
        except (DecodeError, UserError):
            return None

    data = report.ReportData(
        np.asarray(vectors, np.float32),
        np.concatenate(labels),
        image=image if any(paths) else None,
        name=lambda i: paths[i] or f"row {i if i < count else i - count}",
        class_names=tuple(names),
        distance=section.distance,
        backend=section.backend,
        queries=np.arange(count),
        gallery=np.arange(len(joined)) if gallery is None else np.arange(count, len(joined)),
    )
    with jax.set_mesh(make_mesh(None, alone=True)):
        written = report.write_report(
            data,
            rows,
            folder,
            heading=f"{name}: stored embeddings",
            facts={"evaluated": time.strftime("%Y-%m-%d %H:%M")},
            map=section.map,
        )
    return rows, written
