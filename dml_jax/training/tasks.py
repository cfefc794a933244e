"""What the section `evaluation` of a configuration asks for, checked against model and data before the work."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dml_jax import data, names, relations
from dml_jax.data.base import SPLITS
from dml_jax.errors import UserError
from dml_jax.evaluation.evaluate import check_options, parts
from dml_jax.evaluation.metrics import metric_names
from dml_jax.training import build

# Metrics that are no number.
LISTS = ("rho_spectrum@0",)


@dataclass(frozen=True)
class EvalSpec:
    """The evaluation of a split, checked before an image is loaded.

    Attributes:
      split: its name.
      sources: the images: `queries`, which are searched for among themselves or in the `gallery`, and `distractors`.
      labels: of queries and gallery, a row per image: what the relation takes.
      parents: of the queries, where the options need them.
      classes: of all sources, a row per image, as the relation has them; -1 for distractors.
      class_names: by class.
      embeddings: what is evaluated, of the model's outputs.
      options: of `evaluate_embeddings`.
    """

    split: str
    sources: dict[str, data.Source]
    labels: dict[str, np.ndarray]
    parents: np.ndarray | None
    classes: dict[str, np.ndarray]
    class_names: tuple[str, ...]
    embeddings: tuple[str, ...]
    options: dict[str, Any]

    @property
    def about(self) -> str:
        """Describes what the metrics are of, for a reader of their table."""
        options, found = self.options, []
        relation = options["relation"]
        if relation != relations.SAME_LABEL:
            hyper = "".join(f", {name} {value}" for name, value in relation.hyper.items())
            found.append(f"relevant by relation {relation.name}{hyper}")
        for part, how in (("gallery", "searched in"), ("distractors", "with distractors:")):
            if part in self.sources:
                found.append(f"{how} {len(self.sources[part])} images of another split")
        if options["among"] != "all":
            which = {"same_parent": "the same parent", "other_parents": "other parents"}
            found.append(f"searched among images of {which[options['among']]}")
        if options["average"] != "query":
            by = {"parent": "parents"}.get(options["average"], "classes")
            found.append(f"means over {by} of the means over their queries")
        if options["k"] is not None:
            found.append(f"k = {options['k']} where a metric's name leaves it open")
        return "; ".join(found)


def eval_spec(config: Any, split: str, model: Any) -> EvalSpec:
    """Makes what the section `evaluation` asks of a split, and checks it.

    Args:
      config: `data` and `evaluation` are used.
      split: what is evaluated.
      model: whose embeddings they are.

    Raises:
      UserError: options that are unknown or do not go together, and what the model or the data do not have.
    """
    section = config.evaluation
    spec = section.relation
    options = {
        "metrics": metric_names(section.metrics),
        "distance": section.distance,
        "relation": relations.build(spec.to_dict() if isinstance(spec, ConfigDict) else spec),
        "among": section.among,
        "average": section.average,
        "k": section.k,
        "backend": section.backend,
        "kmeans": section.kmeans,
        "block": section.block,
    }
    check_options(**options, parents=True)
    embeddings = tuple(section.embeddings)
    if not embeddings:
        raise UserError("evaluation.embeddings is empty; accepted: one or more names")
    for name in embeddings:
        parts(name, model.outputs)
    others = _others(section, split)
    asked = [f"{key}={options[key]!r}" for key in ("among",) if options[key] != "all"]
    asked += [f"average={options['average']!r}"] * (options["average"] == "parent")
    plain = options["relation"].name == "label"
    for part, other in others.items():
        if asked or not plain:
            what = asked[0] if asked else f"relation {options['relation'].name!r}"
            raise UserError(
                f"evaluation.{part}.{split}={other!r} with {what}: classes have the same names in two splits, "
                "parents and other labels need not; accepted: one of the two"
            )
    if section.after and (others or asked or not plain):
        raise UserError(
            f"evaluation.after={tuple(section.after)} compares searches of a split in itself by class; accepted: no "
            "gallery, distractors, parents or relation beside it"
        )
    sources = {"queries": build.source(config, split)}
    sources |= {part: build.source(config, other) for part, other in others.items()}
    queries = sources["queries"]
    if asked and queries.parent_labels is None:
        raise UserError(
            f"evaluation.{asked[0]} needs parents (parent_labels), which split {split!r} of {config.data.name} does "
            "not have; omniglot and grocery_store have them, and a CSV file of folder with the column parent"
        )
    labels = {"queries": build.labels(options["relation"], queries, "evaluation.relation")}
    classes, class_names = _classes(options["relation"], labels["queries"], queries)
    by_part = {"queries": classes}
    for part, source in sources.items():
        if part == "queries":
            continue
        _check_other(f"evaluation.{part}.{split}={others[part]!r}", part, source, queries)
        by_part[part] = np.full(len(source), -1)
    if "gallery" in sources:
        by_part["gallery"], class_names = _shared(sources["gallery"], class_names)
        labels["gallery"] = by_part["gallery"]
    return EvalSpec(
        split,
        sources,
        labels,
        queries.parent_labels if asked else None,
        by_part,
        class_names,
        embeddings,
        {**options, "normalize": section.normalize},
    )


def notes(specs: Iterable[EvalSpec]) -> list[str]:
    """Returns remarks on what is evaluated.

    Args:
      specs: a spec for each split.
    """
    alone = [spec for spec in specs if len(spec.sources) == 1 and len(spec.class_names) == 1]
    return [
        f"{spec.split} has the single class {spec.class_names[0]!r}, which is found whatever the model does: its "
        "metrics are all 1 and choose nothing; more classes, or other data.fractions, are needed"
        for spec in alone
    ]


def _others(section: Any, split: str) -> dict[str, str]:
    """Returns the other splits that play a part in the evaluation of a split: `gallery`, `distractors`."""
    found = {}
    for part in ("gallery", "distractors"):
        for key in section[part]:
            if key not in SPLITS:
                raise names.unknown(f"split of evaluation.{part}:", key, SPLITS)
        other = section[part].get(split, "")
        if other == split:
            raise UserError(
                f"evaluation.{part}.{split}={other!r} is the split itself; accepted: another one, or ''"
            )
        if other:
            found[part] = other
    return found


def _classes(
    relation: relations.Relation, labels: np.ndarray, source: data.Source
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(the class of each image, their names): those of a level that is not the finest are named by number."""
    if relation.name != "hierarchy" or np.array_equal(relation.classes(labels), source.labels):
        return source.labels, tuple(source.class_names)
    classes = relation.classes(labels)
    return classes, tuple(f"parent {i}" for i in range(int(classes.max()) + 1))


def _check_other(field: str, part: str, source: data.Source, queries: data.Source) -> None:
    """Raises UserError where a split cannot play its part beside the queries."""
    shared = set(source.class_names) & set(queries.class_names)
    if part == "gallery" and not shared:
        raise UserError(
            f"{field} has none of the queries' classes, {queries.class_names[0]!r} and so on; accepted: a split "
            "that shares them"
        )
    if part == "distractors" and shared:
        raise UserError(
            f"{field} has images of the queries' class {min(shared)!r}; accepted: a split without these classes"
        )
    names_of = {queries.name(i) for i in range(len(queries))}
    both = next((n for n in map(source.name, range(len(source))) if n in names_of), None)
    if both is not None:
        raise UserError(
            f"{field} and the queries both have the image {both}; accepted: different ones"
        )


def _shared(
    gallery: data.Source, class_names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(the gallery's labels by the numbers of the queries' classes, further classes after them; all names)."""
    for of_split in (class_names, gallery.class_names):
        if len(set(of_split)) < len(of_split):
            raise UserError(
                "classes of a gallery are found by name, and two of a split have one name"
            )
    number = {name: i for i, name in enumerate(class_names)}
    for name in gallery.class_names:
        number.setdefault(name, len(number))
    table = np.array([number[name] for name in gallery.class_names], np.int64)
    return table[gallery.labels], tuple(number)


def reported_as(embeddings: Sequence[str], split: str) -> dict[str, str]:
    """Returns how the names of a run's metrics begin, by embedding: `split`, and `split/NAME` for all but the first."""
    return {name: f"{split}/{name}" if i else split for i, name in enumerate(embeddings)}


def check_reported(config: Any) -> None:
    """Raises UserError where a training run cannot report what the section `evaluation` asks for, or monitor it."""
    section, monitors = config.evaluation, config.train.monitor
    monitors = [monitors] if isinstance(monitors, str) else list(monitors)
    splits = tuple(section.splits)
    if section.average == "each_class" and splits:
        raise UserError(
            "evaluation.average='each_class' is a value for each class, and a training run reports and monitors "
            "numbers; accepted: query, class, parent, and each_class in dml evaluate"
        )
    numbers = [metric for metric in metric_names(section.metrics) if metric not in LISTS]
    begin = [p for split in splits for p in reported_as(section.embeddings, split).values()]
    known = [f"{p}/{metric}" for p in begin for metric in numbers]
    for monitor in monitors:
        example = f", as in {known[0]!r}" if known else ""
        if monitor and monitor not in known:
            raise UserError(
                f"train.monitor={monitor!r} is not evaluated as a number; a split of evaluation.splits={splits} with "
                f"a metric of evaluation.metrics={tuple(section.metrics)} is accepted{example}, or '' for none"
            )
    for split in set(section.at_end) & set(splits):
        raise UserError(
            f"evaluation.at_end has {split!r}, which evaluation.splits has, too; accepted: in one of the two"
        )
