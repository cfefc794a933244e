"""Configurations: every field with its default, the command line, and what may change when a run goes on."""

import contextlib
import importlib.util
import json
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from dml_jax import names, processes
from dml_jax.evaluation import DEFAULT_METRICS

# A run that goes on may change these: they do not decide what is computed, or they only say for how long.
MAY_CHANGE = (
    r"data\.(path|threads|workers|prefetch)",
    r"model\.weights",
    r"train\.(epochs|devices|log_steps|log_seconds|checkpoint_steps|checkpoint_minutes|patience|wandb)",
    r"evaluation\.(after|batch_size|backend|block|kmeans|map)",
)
# The sections whose fields are those of `new` and no others.
FIXED_SECTIONS = ("train", "evaluation")


def new() -> ConfigDict:
    """A configuration of every section in order, with the defaults; the sections' comments are their reference.

    Unknown fields are errors from here on. `data`, `sampler`, `model`, `loss` and `miner` also take the options of
    what they name: replace them as a whole, as in `config.loss = dict(name="cos_face", margin=0.35, scale=64.0)`.
    """
    config = ConfigDict()
    config.seed = 0
    config.data = data(name="glyphs")
    config.sampler = dict(name="m_per_class", m=4)
    config.model = dict(name="convnet")
    # `distance`, `reducer` and `relation` by name, beside the hyper-parameters of the loss. With the relation
    # "hierarchy" it is given the parents of the classes, too, where the data set has them.
    config.loss = dict(name="multi_similarity")
    # None for a loss without one.
    config.miner = config_dict.placeholder(object)
    config.optim = optim()
    config.train = dict(
        epochs=10,
        batch_size=64,
        # How often each image of a batch comes, augmented anew: for self_supervised, with as many views.
        views=1,
        # Images through the backbone at a time, and anchors in the loss; None: all at once.
        micro_batch=config_dict.placeholder(int),
        block=config_dict.placeholder(int),
        # Devices of this machine that are used; None: all.
        devices=config_dict.placeholder(int),
        # What chooses the best checkpoint and stops early, as `val/map_at_r`; "" for neither.
        monitor="val/map_at_r",
        # Epochs without a better value before training stops; None: never.
        patience=3,
        # A checkpoint is written at every epoch's end, and so often in between; 0: not.
        checkpoint_steps=0,
        checkpoint_minutes=10.0,
        # Steps between rows of metrics; seconds between lines where there is no progress bar.
        log_steps=10,
        log_seconds=15.0,
        # The project to report to; "": none.
        wandb="",
    )
    config.evaluation = dict(
        # Evaluated after every epoch, and, where asked for, before the first.
        splits=("val",),
        before_training=False,
        metrics=tuple(DEFAULT_METRICS),
        # euclidean or cosine, for metrics without a distance of their own; of L2-normalised embeddings or raw ones.
        distance="euclidean",
        normalize=False,
        # What is evaluated of the model's outputs: `embedding`, `features` (of the backbone, before the head), or
        # weighted ones together, as in Combined_embedding_features-1-0.5. Reports show the first one.
        embeddings=("embedding",),
        # When an image is relevant to another: label, hierarchy or overlap; {"name": "hierarchy", "level": 0} for
        # the coarser classes. Among which images a query is searched: all, same_parent, other_parents.
        relation=config_dict.FieldReference("label", field_type=object),
        among="all",
        # The mean over each query, class or parent, or a value for each_class.
        average="query",
        # How many neighbours are looked at by metrics whose names leave it open: a number, max_bin_count (the
        # largest class), or None: all of them, for r_precision and map_at_r the first R.
        k=config_dict.placeholder(object),
        # By split, another split that is searched in place of the split itself, and one that is added to what is
        # searched and is relevant to nothing; "" for none.
        gallery=dict(train="", val="", test=""),
        distractors=dict(train="", val="", test=""),
        batch_size=256,
        # What searches, and what clusters for nmi, ami and f1: jax or faiss, or for the search one that may miss
        # neighbours.
        backend="jax",
        kmeans="faiss",
        # Rows of queries and of what is searched that are compared at a time, which bounds the memory; None: 1024
        # and 2048.
        block=config_dict.placeholder(int),
        # The map of a report: pca, or tsne (which needs the extra `map`).
        map="pca",
        # Steps after training whose recall and bytes per image a report compares: see `evaluation.after_training`.
        after=(),
    )
    return config.lock()


def data(name: str, **options: Any) -> ConfigDict:
    """The data section: what to load, how it becomes batches, and the options of the data set."""
    section = dict(
        name=name,
        # Applied in turn to training images, and to images that are evaluated.
        augment=(),
        prepare=(),
        # The share of the training classes that is held out as `val`; 0 where the set has its own, or for none.
        validation=0.0,
        # Threads, or processes of so many threads each; batches loaded ahead.
        threads=2,
        workers=0,
        prefetch=4,
        # "raise", or "skip" with a count in the log.
        on_error="raise",
    )
    return ConfigDict({**section, **options})


# The fields of the data section that are not options of the data set.
DATA_FIELDS = tuple(k for k in data("") if k != "name")


def optim(**groups: Mapping[str, Any]) -> ConfigDict:
    """The optim section: `backbone`, `head` and `loss`, each Adam at 1e-3 but for what is given."""
    default = dict(
        name="adam", lr=1e-3, weight_decay=0.0, schedule=dict(name="constant"), warmup_steps=0
    )
    matches = {
        "backbone": "model/backbone/.*",
        "head": "model/head/.*",
        "loss": "loss/.*",
    }
    unknown = [g for g in groups if g not in matches]
    if unknown:
        raise names.unknown("group of optim:", unknown[0], matches)
    return ConfigDict({g: {"match": m, **default, **groups.get(g, {})} for g, m in matches.items()})


def arguments(text: str | None, **defaults: Any) -> ConfigDict:
    """What follows the colon in `--config=FILE:a=3,b`, over typed defaults; a name alone means True.

    Raises ValueError for an unknown name or a value of another type.
    """
    found = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        name, given, value = part.partition("=")
        if name not in defaults:
            raise names.unknown("argument of the config:", name, defaults)
        kind = type(defaults[name])
        try:
            found[name] = _to_bool(value) if kind is bool and given else kind(value or 1)
        except ValueError:
            raise ValueError(
                f"argument {name}={value!r} of the config; a value of type {kind.__name__} is accepted"
            ) from None
    return ConfigDict(found)


def _to_bool(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise ValueError(value)
    return value.lower() in ("true", "1")


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The configuration as JSON has it."""
    return json.loads(config.to_json())


def from_dict(stored: Mapping[str, Any]) -> ConfigDict:
    """The configuration that `to_dict` made a dict of.

    Sections and fields that came after it was stored have their defaults (those of what a section names have them
    where it is built). Raises ValueError for a section or field that there is no more.
    """
    config = new()
    with config.unlocked():
        for name, value in json.loads(json.dumps(dict(stored)), object_hook=_tuples).items():
            if name in FIXED_SECTIONS:
                # Field by field: each keeps the type that the command line gives it.
                for field, of_field in value.items():
                    config[name][field] = of_field
            else:
                config[name] = data(**value) if name == "data" else value
    _check_sections(config)
    return config.lock()


def stored(workdir: str) -> ConfigDict:
    """The configuration of a run.

    Raises ValueError where the folder holds none, or one with fields that there are no more.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; a folder that training wrote is accepted")
    with _of_file(path):
        return from_dict(json.loads(path.read_text()))


def _tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], workdir: str) -> None:
    """Raises ValueError that names the fields in which a run's config differs, but for `MAY_CHANGE`.

    A field that came after the run was stored had its default there; one that there is no more is an error, too.
    """
    with _of_file(f"stored in {workdir}"):
        old, now = _flat(to_dict(from_dict(stored))), _flat(given)
    differ = [
        f"{k} ({_show(old, k)} there, {_show(now, k)} given)"
        for k in sorted({*old, *now})
        if _show(old, k) != _show(now, k) and not any(re.fullmatch(p, k) for p in MAY_CHANGE)
    ]
    if differ:
        raise ValueError(
            f"{workdir} holds a run of another config: {'; '.join(differ)}. Its own config, or another "
            "--workdir, is accepted"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _show(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"


def define_flags(*, config: str | None = None) -> None:
    """`--config` and `--workdir`, which every command has."""
    config_flags.DEFINE_config_file("config", config, "FILE.py[:arguments]", lock_config=True)
    flags.DEFINE_string("workdir", None, "The folder of the run.")


def run(
    main: Callable[..., None],
    *,
    required: Mapping[str, str] = MappingProxyType({"workdir": "the folder of the run"}),
    takes: bool = False,
) -> None:
    """Parses the command line and calls `main`; what a user can put right becomes one line and exit status 1 or 2.

    Args:
      required: options that must be given, and what they are.
      takes: whether `main` is called with the arguments that are not options; else such arguments are errors.

    A ValueError raised in this package is such an error. Others keep their traceback.
    """
    if {"--help", "-help", "-h"} & set(sys.argv):
        print(sys.modules["__main__"].__doc__)
        return
    try:
        arguments = _parse(sys.argv, required, takes)
    except (flags.Error, ValueError) as error:
        _fail(error, 2)
    try:
        main(*arguments)
    except Exception as error:
        if isinstance(error, (ValueError, OSError)) and _ours(error):
            _fail(error, 1)
        traceback.print_exc()
        processes.leave(1)


def _fail(error: Exception, status: int) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    processes.leave(status)


def _ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of this package: then its message is meant for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return pathlib.Path(__file__).parent in pathlib.Path(frames[-1].filename).parents


def _parse(argv: list[str], required: Mapping[str, str], takes: bool) -> list[str]:
    """The arguments that are not options."""
    config = _argument(argv, "config")
    if config is not None and "config" in flags.FLAGS:
        _check_fields(argv, load(config))
    rest = flags.FLAGS(argv)[1:]
    if rest and not takes:
        raise ValueError(f"{rest[0]!r} is not an option; --name=value is accepted")
    for name, what in required.items():
        if not flags.FLAGS[name].value:
            raise ValueError(f"--{name} is missing: {what}")
    return rest


def _argument(argv: Sequence[str], name: str) -> str | None:
    for i, arg in enumerate(argv):
        flag, equals, value = arg.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            return value if equals else next(iter(argv[i + 1 : i + 2]), None)
    return None


def load(spec: str) -> ConfigDict:
    """The configuration of `FILE.py[:arguments]`, locked.

    Raises ValueError where there is no such file, or it does not make a configuration.
    """
    file, _, text = spec.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        near = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise names.unknown("config file", file, near)
    found = importlib.util.spec_from_file_location("dml_jax_config", path)
    assert found is not None and found.loader is not None  # a .py file that exists has both
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        config = module.get_config(text) if text else module.get_config()
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"config {file}: {_words(error)}") from error
    with _of_file(file):
        _check_sections(config)
    return config.lock()


def _words(error: Exception) -> str:
    """The gist: ml_collections prints the whole section before the near miss."""
    text = str(error)
    found = re.search(r'Did you mean "(.*)" instead of "(.*)"', text)
    if found:
        return f"unknown field {found[2]!r}; did you mean {found[1]!r}?"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _of_file(file: str | pathlib.Path) -> Iterator[None]:
    """Puts the name of a config's file before what is wrong with the config."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"config {file}: {error}") from None


def _check_sections(config: ConfigDict) -> None:
    """Raises ValueError unless the sections are all there and those of fixed fields have these and no others."""
    default = new()
    for name in config:
        if name not in default:
            raise names.unknown("section", name, default)
    for name in default:
        if name not in config:
            raise ValueError(f"section {name!r} is missing")
    for section in FIXED_SECTIONS:
        for field in config[section]:
            if field not in default[section]:
                raise names.unknown(f"field of {section}:", field, default[section])
        missing = [k for k in default[section] if k not in config[section]]
        if missing:
            raise ValueError(f"{section} lacks {missing[0]!r}: set its fields one by one")


def _check_fields(argv: Sequence[str], config: ConfigDict) -> None:
    """Raises ValueError for the first `--config.a.b` that is no field, with the near misses of its level."""
    for arg in argv:
        found = re.match(r"--?(?:no)?config\.([^=]+)", arg)
        if not found:
            continue
        level: Any = config
        for key in found[1].split("."):
            if not isinstance(level, ConfigDict) or key not in level:
                accepted = list(level) if isinstance(level, ConfigDict) else []
                raise ValueError(f"--config.{found[1]}: {names.unknown('field', key, accepted)}")
            level = level[key]
