"""From the sections of a configuration to the parts of a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dml_jax import data, losses, miners, models, samplers
from dml_jax.config import DATA_FIELDS
from dml_jax.losses.own import ViewsLoss
from dml_jax.losses.wrappers import Multiple, SelfSupervised
from dml_jax.relations import Relation


def source(config: Any, split: str) -> data.Source:
    """A split of the configured data; with `data.validation` the training classes make train and val.

    Raises ValueError where the data are not there.
    """
    section = config.data.to_dict()
    options = {k: v for k, v in section.items() if k not in ("name", *DATA_FIELDS)}
    if "path" in options and options["path"] is None:
        raise ValueError(
            f"data.path of {section['name']} is not set; --config.data.path=PATH is accepted"
        )
    fraction = section["validation"]
    if split == "test" or not fraction:
        return data.load(section["name"], split, **options)
    train, val = data.hold_out(
        data.load(section["name"], "train", **options), fraction, config.seed
    )
    return {"train": train, "val": val}[split]


def model(section: Mapping[str, Any]) -> Any:
    """The model of the section `model`; `weights` that are "" are drawn.

    Raises ValueError where a configuration has the field and it is not set: a run from random weights in place of
    trained ones would be taken for the method's failure.
    """
    section = dict(section)
    if "weights" in section and section["weights"] is None:
        raise ValueError(
            f"model.weights of {section['name']} is not set; --config.model.weights=FILE is accepted, and "
            "--config.model.weights= (empty) for random ones"
        )
    return models.get(**{**section, "weights": section.get("weights") or None})


def loss(config: Any) -> Any:
    """The loss of the section `loss` with the miner of the section `miner`."""
    miner = None if config.miner is None else miners.get(**config.miner)
    # Plain dicts inside, too: a distance, or the losses inside a loss, may be sections of their own.
    return losses.get(miner=miner, **config.loss.to_dict())


def sampler(section: Any) -> samplers.Sampler:
    """The sampler of the section `sampler`."""
    return samplers.get(**section.to_dict())


def transform(steps: Any) -> Any:
    """What `data.augment` and `data.prepare` describe; None where that is nothing."""
    return data.augment.build(steps) if len(steps) else None


def pipeline(section: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the data section that batches of training and evaluation share."""
    return {k: section[k] for k in ("threads", "workers", "prefetch", "on_error")}


def labels(relation: Relation, source: data.Source, field: str = "loss.relation") -> np.ndarray:
    """The labels of all images as the relation takes them, `[N]`, `[N, levels]` or `[N, labels]`.

    `field` is where the relation was asked for. Raises ValueError for one whose labels the data do not have.
    """
    if relation.name == "hierarchy":
        found = data.hierarchy(source)
        relation.classes(found)  # the level exists
        return found
    if relation.name == "overlap":
        return data.label_sets(source)
    if relation.name != "label":
        raise ValueError(
            f"{field} is {relation.name!r}, and data sets have labels of images; accepted: 'label', "
            "'hierarchy' where classes have parents, 'overlap' where images have sets of labels"
        )
    return source.labels


def check_views(loss: Any, views: int) -> None:
    """Raises ValueError where a loss on views of images does not get as many as it compares."""
    if isinstance(loss, Multiple):
        for _, part in loss.losses:
            check_views(part, views)
    elif isinstance(loss, SelfSupervised) and loss.views != views:
        raise ValueError(
            f"loss 'self_supervised' has views={loss.views} and train.views={views}; accepted: train.views="
            f"{loss.views}"
        )
    elif isinstance(loss, ViewsLoss):
        raise ValueError(
            f"loss {loss.name!r} compares two views of a batch; accepted: {{'name': 'self_supervised', 'loss': "
            f"{loss.name!r}, 'symmetric': False}} with train.views=2"
        )


def check_pairs(loss: Any, labels: np.ndarray, views: int = 1) -> None:
    """Raises ValueError where a loss on pairs of samples can find no two of a class (of the coarsest level)."""
    _, counts = np.unique(labels.reshape(len(labels), -1)[:, 0], return_counts=True)
    if loss.pairwise and loss.takes_references and views * counts.max(initial=0) < 2:
        raise ValueError(
            f"each of the {len(counts)} training classes has a single image, and loss {loss.name!r} compares "
            "images of a class; a class with two or more, or a loss against class weights, is accepted"
        )
