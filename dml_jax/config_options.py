"""The fields of a configuration's sections: their types, ranges, defaults and meanings stand here and nowhere else."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from dml_jax.data.training_split import HeldOut
from dml_jax.evaluation import DEFAULT_METRICS
from dml_jax.parameters import (
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
)

# A name, or a dict with a name and hyper-parameters.
Named = str | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The section `train`.

    Attributes:
      epochs: how often the sampler's plan of an epoch is trained; with 0 the model is evaluated and saved as it begins.
      batch_size: images of a step, on all devices together.
      views: how often each image of a batch comes, augmented anew; for self_supervised, with as many views.
      micro_batch: images that go through the backbone at a time; None: all at once. The gradient is the same.
      block: anchors (or classes) that the loss looks at at a time; None: all at once. The value is the same.
      references: how what the loss compares images with lies on the devices: "replicated", each has all embeddings, or
        "sharded", each has its share, and they exchange similarities for each block. The value is the same.
      devices: how many devices of each process are used; None: all.
      fsdp: devices that share one copy of the state, parameters and moments; 1: each has a whole one.
      replicas: groups of devices that are joined by a slow network, hosts or slices; `fsdp` devices are within one.
      shard_above: arrays of the state with fewer elements are whole on every device.
      shard_axes: pairs of a regular expression for the paths of parameters, as in ("model/head/.*", 0), and the axis
        of them that is split, or None for whole ones; where none matches, the largest that the devices divide.
      precision: what the backbone computes in while it is trained: float32, bfloat16, or "" for what `model.dtype`
        says. Parameters, loss and evaluation are not touched.
      deterministic: whether GPUs add in a fixed order, which is slower, so that a run that was killed ends with the
        bits of one that was not. CPUs and TPUs always do.
      ema: decay of an average of the model's parameters, which is evaluated and saved in their place; None: none.
      monitor: the metric that chooses the best checkpoint and stops training early, as in `val/map_at_r`; "": none.
        Of several ones each has its best checkpoint, and the first one stops training.
      patience: evaluations without a better value of `monitor` after which training stops (0 counts as 1); None: never.
      eval_epochs: epochs between two evaluations; there is always one at the end.
      eval_steps: and steps between two of them; 0: no more.
      checkpoint_steps: a checkpoint is written at the end of every epoch, and every so many steps; 0: no more.
      checkpoint_minutes: and when so many minutes have passed since the last one; 0: no more.
      checkpoints: the folder of the checkpoints, which may be on gs:// or s3://; a relative one is in the folder of the
        run. "": `checkpoints`.
      log_steps: steps between two rows of metrics, and the most after which a loss that is not finite stops the run.
      log_seconds: seconds between two lines of progress, where the output is no terminal.
      clip: the largest global norm of the gradient, of all groups together; a longer one is scaled to it. None: any.
      profile: the first and the last step of a trace for TensorBoard and XProf, in `profile/` of the run; None: none.
      wandb: the Weights & Biases project that metrics are reported to; "": none. WANDB_MODE=offline and disabled work.
      wandb_group: the group of the run there, such as what a study compares; "": none.
      wandb_name: its name there; "": one that is drawn.
    """

    epochs: NonNegativeInt = 10
    batch_size: PositiveInt = 64
    views: PositiveInt = 1
    micro_batch: PositiveInt | None = None
    block: PositiveInt | None = None
    references: Literal["replicated", "sharded"] = "replicated"
    devices: PositiveInt | None = None
    fsdp: PositiveInt = 1
    replicas: PositiveInt = 1
    shard_above: NonNegativeInt = 2**16
    shard_axes: tuple[tuple[str, int | None], ...] = ()
    precision: Literal["", "float32", "bfloat16"] = ""
    deterministic: bool = False
    ema: Annotated[float, Interval(0, 1)] | None = None
    monitor: str | tuple[str, ...] = "val/map_at_r"
    patience: NonNegativeInt | None = 3
    eval_epochs: PositiveInt = 1
    eval_steps: NonNegativeInt = 0
    checkpoint_steps: NonNegativeInt = 0
    checkpoint_minutes: NonNegativeFloat = 10.0
    checkpoints: str = ""
    log_steps: PositiveInt = 10
    log_seconds: NonNegativeFloat = 15.0
    clip: PositiveFloat | None = None
    profile: tuple[PositiveInt, PositiveInt] | None = None
    wandb: str = ""
    wandb_group: str = ""
    wandb_name: str = ""

    @property
    def monitors(self) -> tuple[str, ...]:
        """The monitored metrics."""
        given = (self.monitor,) if isinstance(self.monitor, str) else self.monitor
        return tuple(name for name in given if name)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The fields of the section `data` that every data set has.

    Attributes:
      augment: what is applied to training images, in turn.
      prepare: what is applied to images that are evaluated, in turn.
      validation: the share of the training classes that is held out as `val`; 0 where the set has a `val` of its
        own, or for none.
      validation_by: what is held out: random_classes, last_classes (in the set's own order, as in both papers' code),
        fold (one of 1 / validation parts of the classes in that order), or images of every class.
      fold: which part `validation_by="fold"` holds out, from 0 on.
      train_classes: how many classes of the training split are trained, drawn at random, or which share of them (below
        1); None: all.
      train_images_per_class: how many images of each are trained at most, drawn at random; None: all.
      label_noise: the share of the training images that get the label of another class. Evaluations have the true ones.
      subset_seed: of these three draws. The larger draw of a seed holds the smaller one.
      threads: threads that load images, or threads of each process that does.
      workers: processes that load images; 0: threads of this process do.
      prefetch: batches that are loaded ahead.
      on_error: what happens where an image cannot be decoded: "raise", or "skip" with a count in the log.
    """

    augment: tuple[Named, ...] = ()
    prepare: tuple[Named, ...] = ()
    validation: Annotated[float, Interval(0, 1, closed_low=True)] = 0.0
    validation_by: HeldOut = "random_classes"
    fold: NonNegativeInt = 0
    train_classes: PositiveInt | OpenFraction | None = None
    train_images_per_class: PositiveInt | None = None
    label_noise: Annotated[float, Interval(0, 1, closed_low=True)] = 0.0
    subset_seed: NonNegativeInt = 0
    threads: PositiveInt = 2
    workers: NonNegativeInt = 0
    prefetch: PositiveInt = 4
    on_error: Literal["raise", "skip"] = "raise"


def _no_splits() -> dict[str, str]:
    return {"train": "", "val": "", "test": ""}


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The section `evaluation`.

    Attributes:
      splits: the splits that are evaluated in training.
      at_end: the splits that the best model is evaluated on at the end of the training, such as ("test",).
      before_training: True to evaluate them before the first epoch, too.
      metrics: the names of the metrics.
      distance: euclidean or cosine, for metrics without a distance of their own.
      normalize: True to normalise embeddings before they are compared.
      embeddings: what is evaluated of the model's outputs: `embedding`, `features` (of the backbone, before the
        head), or weighted ones together, as in Combined_embedding_features-1-0.5. Reports show the first one.
      relation: when an image is relevant to another: label, hierarchy or overlap; {"name": "hierarchy", "level": 0}
        for the coarser classes.
      among: the images among which a query is searched: all, same_parent, other_parents.
      average: the mean is over each query, class or parent; or there is a value for each_class.
      k: how many neighbours are looked at by metrics whose names leave it open: a number, max_bin_count (the largest
        class), or None: all of them, for r_precision and map_at_r the first R.
      gallery: by split, another split that is searched in place of the split itself; "" for none.
      distractors: by split, a split that is added to what is searched and is relevant to nothing; "" for none.
      batch_size: images that are embedded at a time.
      backend: what searches: jax or faiss, or a backend that may miss neighbours.
      kmeans: what clusters for nmi, ami and f1: jax or faiss.
      block: rows of queries and of what is searched that are compared at a time, which bounds the memory; None: 1024
        and 2048.
      map: the map of a report: pca, or tsne (which needs the extra `map`).
      after: steps after training whose recall and bytes per image a report compares; see
        `evaluation.after_training`.
    """

    splits: tuple[str, ...] = ("val",)
    at_end: tuple[str, ...] = ()
    before_training: bool = False
    metrics: tuple[str, ...] = tuple(DEFAULT_METRICS)
    distance: str = "euclidean"
    normalize: bool = False
    embeddings: tuple[str, ...] = ("embedding",)
    relation: Named = "label"
    among: str = "all"
    average: str = "query"
    k: int | str | None = None
    gallery: Mapping[str, str] = dataclasses.field(default_factory=_no_splits)
    distractors: Mapping[str, str] = dataclasses.field(default_factory=_no_splits)
    batch_size: int = 256
    backend: str = "jax"
    kmeans: str = "faiss"
    block: int | None = None
    map: str = "pca"
    after: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """The fields of a group of the section `optim`: `backbone`, `head`, `loss`, and whatever a file calls others.

    Attributes:
      match: a regular expression that matches the paths of the group's parameters, such as 'model/head/.*'.
      name: the optimizer, whose hyper-parameters are further fields of the group.
      lr: the learning rate; 0 freezes the group.
      weight_decay: the optimizer's; 0 is accepted for each of them.
      schedule: the factor of the rate as training goes on: a dict with the name of a schedule and its hyper-parameters.
      warmup_steps: steps over which the rate rises to that of the schedule.
      start_step: the steps before which the group's parameters stay as they are, and its optimizer's moments.
      last_blocks: how many of the model's last blocks are trained, with what follows them; the others cost no backward
        pass. None: all.
      layer_decay: the factor of the rate from each layer of the model to the one before it; 1: all have the same.
      freeze: True leaves the group's parameters as they are.
      sparse: True leaves rows without a gradient as they are, with their moments: for the weights of `partial_fc`.
    """

    match: str = ""
    name: str = "adam"
    lr: NonNegativeFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    schedule: Named = dataclasses.field(default_factory=lambda: {"name": "constant"})
    warmup_steps: NonNegativeInt = 0
    start_step: NonNegativeInt = 0
    last_blocks: NonNegativeInt | None = None
    layer_decay: Annotated[float, Interval(0, 1, closed_high=True)] = 1.0
    freeze: bool = False
    sparse: bool = False
