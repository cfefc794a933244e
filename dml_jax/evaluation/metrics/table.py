"""Metrics by name.

Four kinds: `ranks` (one value a query, from the ranks of its relevant neighbours), `clusters` (labels against k-means),
`space` (the embeddings themselves) and `pairs` (verification).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dml_jax import names
from dml_jax.errors import UserError
from dml_jax.evaluation.metrics.factories import (
    ami,
    auc,
    class_distances,
    eer,
    epsilon_opis,
    f1,
    fnmr_at_fmr,
    map_at_r,
    mean_average_precision,
    mean_reciprocal_rank,
    minp,
    ndcg,
    nmi,
    opis,
    precision_at_k,
    r_precision,
    recall_at_k,
    revisiting_map,
    revisiting_map_c,
    revisiting_recall,
    rho_spectrum,
    tar_at_far,
)
from dml_jax.evaluation.metrics.metric import Metric

# By name. k, m and x at the end of a name stand for a number, the factory's first argument.
METRICS: dict[str, Callable[..., Metric]] = {
    "ami": ami,
    "auc": auc,
    "c_f1": partial(f1, "cosine"),
    "c_mAP": partial(revisiting_map, None, "cosine"),
    "c_mAP_1000": partial(revisiting_map, 1000, "cosine", "mAP_1000"),
    "c_mAP_c": partial(revisiting_map_c, "cosine"),
    "c_mAP_lim": partial(revisiting_map, 1023, "cosine", "mAP_lim"),
    "c_nmi": partial(nmi, "cosine"),
    "c_recall@k": partial(revisiting_recall, distance="cosine"),
    "dists@inter": partial(class_distances, "inter"),
    "dists@intra": partial(class_distances, "intra"),
    "dists@intra_over_inter": partial(class_distances, "intra_over_inter"),
    "e_recall@k": revisiting_recall,
    "eer": eer,
    "f1": f1,
    "fnmr@fmr=x": fnmr_at_fmr,
    "mAP": revisiting_map,
    "mAP_1000": partial(revisiting_map, 1000, name="mAP_1000"),
    "mAP_c": revisiting_map_c,
    "mAP_lim": partial(revisiting_map, 1023, name="mAP_lim"),
    "map_at_r": map_at_r,
    "mean_average_precision": mean_average_precision,
    "mean_average_precision_at_k": mean_average_precision,
    "mean_reciprocal_rank": mean_reciprocal_rank,
    "mean_reciprocal_rank_at_k": mean_reciprocal_rank,
    "minp": minp,
    "ndcg": ndcg,
    "ndcg_at_k": ndcg,
    "nmi": nmi,
    "opis": opis,
    "opis@epsilon=x": epsilon_opis,
    "precision_at_1": precision_at_k,
    "precision_at_k": precision_at_k,
    "r_precision": r_precision,
    "recall@k": recall_at_k,
    "recall_at_k": recall_at_k,
    "rho_spectrum@m": rho_spectrum,
    "tar@far=x": tar_at_far,
}
# As tables print them.
TITLES: dict[str, Callable[..., Metric]] = {
    "AMI": ami,
    "AUC": auc,
    "EER": eer,
    "F1": f1,
    "MAP": mean_average_precision,
    "MAP@R": map_at_r,
    "MAP@k": mean_average_precision,
    "MRR": mean_reciprocal_rank,
    "MRR@k": mean_reciprocal_rank,
    "NMI": nmi,
    "OPIS": opis,
    "P@k": precision_at_k,
    "R-precision": r_precision,
    "R@k": recall_at_k,
    "mINP": minp,
    "nDCG": ndcg,
    "nDCG@k": ndcg,
}
# Names that leave the k of their definition open.
OPEN = (
    *("map_at_r", "mean_average_precision", "mean_reciprocal_rank", "ndcg", "r_precision"),
    *("MAP@R", "MAP", "MRR", "nDCG", "R-precision"),
)
# What stands for a number at the end of a name, how the number is read, and an example of it.
PLACEHOLDERS: dict[str, tuple[str, type, str]] = {
    "@k": (r"[1-9][0-9]*", int, "4"),
    "_k": (r"[1-9][0-9]*", int, "4"),
    "@m": (r"-?[0-9]+", int, "2"),
    "=x": (r"[0-9.]+(?:e-?[0-9]+)?", float, "0.1"),
}


def get(name: str, k: int | None = None) -> Metric:
    """Returns the metric of a name.

    Args:
      name: one of `available()`, a title as tables print it (`R@1`, `MAP@R`), or "package.module:name" for a metric of
        one's own, made by `of_ranks` or `of_embeddings`.
      k: how many neighbours those look at whose name leaves it open (`OPEN`); None: r_precision and map_at_r the
        first R, the others all.

    Raises:
      UserError: an unknown name, with the near misses; a number that is missing or out of range.

    >>> get("tar@far=0.01").false_accept_rates
    (0.01,)
    >>> get("R@1").title
    'R@1'
    """
    if isinstance(name, str) and ":" in name:
        found = names.imported("metric", name)
        if not isinstance(found, Metric):
            raise UserError(
                f"metric {name!r} is {found!r}; accepted: a Metric, which evaluation.metrics.of_ranks and "
                "of_embeddings make of a function"
            )
        return replace(found, name=name)
    for table in (METRICS, TITLES):
        if name in table and str(name)[-2:] not in PLACEHOLDERS:
            if k is None or name not in OPEN:
                return replace(table[name](), name=name)
            plain = table[name]()
            return replace(table[name](k), name=name, title=plain.title)
    for key, factory in {**METRICS, **TITLES}.items():
        if key[-2:] not in PLACEHOLDERS:
            continue
        pattern, number, example = PLACEHOLDERS[key[-2:]]
        if name == key:
            raise UserError(
                f"metric {name!r} needs a number for {name[-1]}, as in {key[:-1] + example!r}"
            )
        match = re.fullmatch(re.escape(key[:-1]) + f"({pattern})", str(name))
        if match:
            found = factory(_number(name, number, match[1]))
            title = name if found.title == found.name else found.title
            return replace(found, name=name, title=title)
    raise names.unknown("metric", name, _with_number(str(name)))


def _with_number(name: str) -> list[str]:
    """Returns the names that are accepted; those that take a number end in that of `name`, where it has one."""
    number = re.search(r"\d+(\.\d+)?$", name)
    accepted = list({**METRICS, **TITLES})
    if number is None:
        return accepted
    numbered = {key: key[:-1] + number[0] for key in accepted if key[-2:] in PLACEHOLDERS}
    # A number that is not accepted must not be proposed again.
    return [key if numbered.get(key) == name else numbered.get(key, key) for key in accepted]


def _number(name: str, kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"metric {name!r}: {text!r} is not a number") from None


def available() -> tuple[str, ...]:
    """Lists the names of the metrics; k, m and x at their ends stand for numbers.

    >>> "map_at_r" in available()
    True
    """
    return tuple(sorted(METRICS))


def metric_names(metrics: str | Sequence[str | Metric]) -> tuple[str, ...]:
    """Lists the names of the metrics that were asked for: a sequence, or one text with commas between them.

    >>> metric_names("recall_at_1, map_at_r")
    ('recall_at_1', 'map_at_r')
    """
    return tuple(metric.name for metric in select(metrics))


def select(metrics: str | Sequence[str | Metric]) -> list[Metric]:
    """Returns the metrics that were asked for.

    Args:
      metrics: names, metrics, or one text with commas between names.

    Raises:
      UserError: as `get`; what is neither a name nor a metric.

    >>> [metric.title for metric in select("R@1,map_at_r")]
    ['R@1', 'MAP@R']
    """
    if isinstance(metrics, Metric):
        return [metrics]
    if isinstance(metrics, Mapping) or not hasattr(metrics, "__iter__"):
        raise UserError(
            f"metrics={metrics!r}; accepted: names, or one text with commas between them"
        )
    listed = metrics.split(",") if isinstance(metrics, str) else metrics
    return [
        m if isinstance(m, Metric) else get(m.strip() if isinstance(m, str) else m) for m in listed
    ]
