"""Makes the parts of a run from the sections of a configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dml_jax import data, losses, miners, models, names, samplers
from dml_jax.config import DATA_FIELDS, plain, typed
from dml_jax.config_options import DataOptions
from dml_jax.errors import UserError
from dml_jax.losses import Loss, Multiple, SelfSupervised, ViewsLoss
from dml_jax.relations import Relation


def source(config: Any, split: str) -> data.Source:
    """Returns a split of the configured data, with true labels.

    With `data.validation` the training split makes train and val. Of train there is what `data.train_classes` and
    `data.train_images_per_class` leave.

    Args:
      config: a configuration, of which `data` and `seed` are used.
      split: the split.

    Raises:
      UserError: the data are not there, or have no such split.
    """
    section = plain(config.data)
    options = {k: v for k, v in section.items() if k not in ("name", *DATA_FIELDS)}
    if "path" in options and options["path"] is None:
        raise UserError(
            f"data.path of {section['name']} is not set; --config.data.path=PATH is accepted"
        )
    chosen = typed("data", DataOptions, section)
    if split == "test" or not chosen.validation:
        found = data.load(section["name"], split, **options)
    elif split not in ("train", "val"):
        raise names.unknown("split beside data.validation:", split, ("train", "val", "test"))
    else:
        whole = data.load(section["name"], "train", **options)
        train, val = data.hold_out(
            whole, chosen.validation, config.seed, chosen.validation_by, chosen.fold
        )
        found = train if split == "train" else val
    if split != "train":
        return found
    return data.reduced(
        found,
        classes=chosen.train_classes,
        images_per_class=chosen.train_images_per_class,
        seed=chosen.subset_seed,
    )


def training_source(config: Any) -> data.Source:
    """Returns the split "train" with the labels that are trained: some wrong ones, with `data.label_noise`.

    Args:
      config: a configuration, of which `data` and `seed` are used.

    Raises:
      UserError: as `source`, and noise in the labels of a single class.
    """
    section = plain(config.data)
    return data.with_label_noise(
        source(config, "train"), section["label_noise"], section["subset_seed"]
    )


def model(section: Mapping[str, Any]) -> models.Model:
    """Returns the model of the section `model`.

    Args:
      section: `name` and hyper-parameters. `weights` that are "" are drawn. Where a configuration has the field and it
        is not set, that is an error: a run from random weights in place of trained ones would be taken for the
        method's failure.

    Raises:
      UserError: an unknown name or hyper-parameter, or `weights` that are not set.
    """
    section = dict(plain(section))
    if "weights" in section and section["weights"] is None:
        raise UserError(
            f"model.weights of {section['name']} is not set; --config.model.weights=FILE is accepted, and "
            "--config.model.weights= (empty) for random ones"
        )
    if "weights" in section:
        section["weights"] = section["weights"] or None
    return models.get(**section)


def loss(config: Any) -> Loss:
    """Returns the loss of the section `loss` with the miner of the section `miner`.

    Args:
      config: a configuration, of which `loss` and `miner` are used.

    Raises:
      UserError: an unknown name or hyper-parameter.
    """
    section = dict(plain(config.loss))
    if config.miner is not None:
        section["miner"] = miners.get(**plain(config.miner))
    return losses.get(**section)


def sampler(section: Mapping[str, Any]) -> samplers.Sampler:
    """Returns the sampler of the section `sampler`.

    Raises:
      UserError: an unknown name or hyper-parameter.
    """
    return samplers.get(**plain(section))


def transform(steps: Sequence[Any]) -> Any:
    """Returns what `data.augment` and `data.prepare` describe; None where that is nothing.

    Raises:
      UserError: an unknown augmentation or hyper-parameter.
    """
    return data.augment.build(steps) if len(steps) else None


def check_size(field: str, steps: Sequence[Any], model: models.Model) -> None:
    """Checks that augmentations end at the model's image size, where they are the library's own.

    Args:
      field: what the augmentations are, as errors call it.
      steps: of a configuration; where there are none, the images of the data set stay as they are.
      model: the model.

    Raises:
      UserError: they end at another size, or at one that depends on the image.
    """
    called = [step if isinstance(step, str) else plain(step).get("name") for step in steps]
    if not called or not set(called) <= set(data.augment.available()):
        return
    chain, want = transform(steps), model.image_size
    # Two images of other shapes than the model's, upright and not.
    sides = ((2 * want + 8, 2 * want + 40), (2 * want + 60, 2 * want + 16))
    images = [np.zeros((*side, model.channels), np.uint8) for side in sides]
    ends = {chain(image, np.random.default_rng(0)).shape[:2] for image in images}
    if ends == {(want, want)}:
        return
    found = "images of another size"
    if len(ends) > 1:
        found = "images whose size depends on the image"
    elif len(ends) == 1:
        found = "images of {} x {}".format(*next(iter(ends)))
    raise UserError(
        f"{field} ({', '.join(called)}) ends in {found}, and model {model.name!r} takes {want} x {want} "
        f"(model.image_size); accepted: a crop to size={want} at its end, or another model.image_size"
    )


def labels(relation: Relation, source: data.Source, field: str = "loss.relation") -> np.ndarray:
    """Returns the labels of all images as a relation takes them, `[N]`, `[N, levels]` or `[N, labels]`.

    Args:
      relation: of the loss, or of an evaluation.
      source: the images.
      field: where the relation was asked for, for errors.

    Raises:
      UserError: the data do not have these labels.
    """
    if relation.name == "hierarchy":
        found = data.hierarchy(source)
        relation.classes(found)  # the level exists
        return found
    if relation.name == "overlap":
        return data.label_sets(source)
    if relation.name != "label":
        raise UserError(
            f"{field} is {relation.name!r}, and data sets have labels of images; accepted: 'label', "
            "'hierarchy' where classes have parents, 'overlap' where images have sets of labels"
        )
    return source.labels


def num_weight_classes(loss: Loss, labels: np.ndarray, source: data.Source) -> int:
    """Returns the number of classes that a loss against class weights has weights for: those of its level.

    Args:
      loss: the loss.
      labels: what `labels` returned for its relation.
      source: the training images.
    """
    if labels.ndim == 1:
        return len(source.class_names)
    return int(loss.relation.classes(labels).max()) + 1


def check_views(loss: Loss, views: int) -> None:
    """Checks that a loss on views of images gets as many as it compares.

    Args:
      loss: the loss.
      views: `train.views`.

    Raises:
      UserError: it does not.
    """
    if isinstance(loss, Multiple):
        for _, part in loss.losses:
            check_views(part, views)
    elif isinstance(loss, SelfSupervised) and loss.views != views:
        raise UserError(
            f"loss 'self_supervised' has views={loss.views} and train.views={views}; accepted: train.views="
            f"{loss.views}"
        )
    elif isinstance(loss, ViewsLoss):
        raise UserError(
            f"loss {loss.name!r} compares two views of a batch; accepted: {{'name': 'self_supervised', 'loss': "
            f"{loss.name!r}, 'symmetric': False}} with train.views=2"
        )


def check_pairs(loss: Loss, labels: np.ndarray, views: int = 1) -> None:
    """Checks that a loss on pairs of samples can find two of a class (of the coarsest level).

    Args:
      loss: the loss.
      labels: what it takes, a row for each training image.
      views: `train.views`.

    Raises:
      UserError: it cannot, so that a training would go on at loss 0.
    """
    if not loss.needs_positives:
        return
    _, counts = np.unique(labels.reshape(len(labels), -1)[:, 0], return_counts=True)
    if views * counts.max(initial=0) < 2:
        raise UserError(
            f"each of the {len(counts)} training classes has a single image, and loss {loss.name!r} compares "
            "images of a class; a class with two or more, or a loss against class weights, is accepted"
        )
