"""What a run works with between its start and its end."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from dml_jax import config as configs
from dml_jax import console, data, own_code, run_folder
from dml_jax.data.base import SPLITS
from dml_jax.data.datasets import folder
from dml_jax.errors import UserError
from dml_jax.mesh import make_mesh
from dml_jax.models import Model
from dml_jax.processes import check_fixed_order, is_primary
from dml_jax.training import build, optim, same_data, tasks
from dml_jax.training import state as states
from dml_jax.training.experiment import Experiment
from dml_jax.training.feed import Feed
from dml_jax.training.planning import Plans
from dml_jax.training.position import Position
from dml_jax.training.preemption import Preemption
from dml_jax.training.profiling import Profiler
from dml_jax.training.reporting import Reporter, images, log
from dml_jax.training.saving import Saver
from dml_jax.training.state import State
from dml_jax.training.step import Step, make_train_step
from dml_jax.training.validation import Validator


@dataclass(frozen=True)
class Session:
    """What a run works with, made by `open_session`.

    Attributes:
      experiment: what is trained.
      mesh: the devices that it is trained on.
      step: the compiled step.
      plans: plans its epochs.
      validator: evaluates it.
      saver: saves it.
      reporter: reports it.
      feed: brings its batches onto the devices.
      profiler: traces steps of it.
      preemption: ends it where SIGTERM arrives.
    """

    experiment: Experiment
    mesh: Mesh
    step: Step
    plans: Plans
    validator: Validator
    saver: Saver
    reporter: Reporter
    feed: Feed
    profiler: Profiler
    preemption: Preemption


@contextlib.contextmanager
def open_session(experiment: Experiment, workdir: str) -> Iterator[tuple[Session, State, Position]]:
    """Opens the folder of a run, and yields (session, state, position): a new run, or one that goes on.

    The devices of the session are in context (`jax.set_mesh`). Files and threads are closed at the end, whatever it is.

    Args:
      experiment: what is trained.
      workdir: the folder of the run.

    Raises:
      UserError: too few devices, a sampler that cannot make batches of the data, a folder that holds another run.
    """
    options = experiment.options
    if options.deterministic:
        check_fixed_order()
    mesh = make_mesh(options.devices, fsdp=options.fsdp, replicas=options.replicas)
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        plans = stack.enter_context(contextlib.closing(Plans.of(experiment)))
        log(_summary(experiment, plans, mesh))
        for note in [*plans.notes(), *_adaptation(experiment), *tasks.notes(experiment.eval_specs)]:
            log(f"note: {note}")

        length = plans.length(options.epochs)
        layers = experiment.model.layers()
        tx = optim.partition(experiment.groups, length, options.clip, layers)
        place = run_folder.create(workdir)
        # What the scan finds among the images of the run: the report at its end counts them, too.
        unreadable: set[str] = set()
        if is_primary():
            stack.enter_context(contextlib.closing(_scan(experiment, unreadable)))
        if is_primary() and not (place / "config.json").exists():
            # Whatever ends a run before its first step, `--workdir` alone starts it again.
            run_folder.write_config(place, experiment.config)
        saver = stack.enter_context(contextlib.closing(Saver(experiment, place, plans)))
        images = same_data.of_experiment(experiment)
        # Before the checkpoint is read: other classes would be an architecture that differs.
        notes = [] if saver.latest() is None else same_data.check(place, images)
        state, position = saver.begin(tx, mesh)
        log(console.aligned(optim.summary(state["params"], experiment.groups, layers)))
        if saver.latest() is not None:
            log(f"going on from {saver.latest()}")
            notes += _unread_weights(saver.config, experiment.config)
        else:
            notes = beginning(experiment.model, experiment.config["model"])
        for note in notes:
            log(f"note: {note}")
        if is_primary():
            if saver.latest() is None:
                same_data.write(place, images)
                same_data.write_labels(place, experiment)
            run_folder.write_config(place, saver.config)
            own_code.store(place, saver.config)

        skipped = Counter[str]()
        reporter = Reporter(experiment, place, position, length, skipped, unreadable, saver.latest)
        stack.enter_context(contextlib.closing(reporter))
        profiler = Profiler(place / "profile", options.profile)
        stack.enter_context(contextlib.closing(profiler))
        feed = stack.enter_context(contextlib.closing(Feed(experiment, plans, mesh, skipped)))
        preemption = stack.enter_context(Preemption())
        state |= states.watch(mesh)
        step = make_train_step(
            experiment.trained_model,
            experiment.loss,
            tx,
            micro_batch=options.micro_batch,
            block=options.block,
            references=options.references,
            ema=options.ema,
            trained=optim.trained(experiment.groups, layers),
            shardings=jax.tree.map(lambda x: x.sharding, state),
        )
        session = Session(
            experiment=experiment,
            mesh=mesh,
            step=step,
            plans=plans,
            validator=Validator(experiment, preemption, skipped),
            saver=saver,
            reporter=reporter,
            feed=feed,
            profiler=profiler,
            preemption=preemption,
        )
        yield session, state, position


# How long a run waits for the scan of its images, in seconds; a longer one goes on beside the training.
SCAN = 2.0


def _scan(experiment: Experiment, unreadable: set[str]) -> data.BackgroundScan:
    """Begins to look for what is wrong with the files of the images, and says it when all are seen.

    Args:
      experiment: what is trained.
      unreadable: gets the paths of the files that the run reads and cannot decode.

    Raises:
      UserError: files are missing or empty, and an image that cannot be decoded ends the run.
    """
    specs = (*experiment.eval_specs, *experiment.at_end)
    sources = [experiment.source, *(s for spec in specs for s in spec.sources.values())]
    stops = experiment.loader.options.on_error == "raise"
    found = data.Findings()
    read = dict.fromkeys(path for s in sources for path, _ in data.paths_of(s))
    data.sizes(read, found)
    if found.broken and stops:
        raise UserError(f"{'; '.join(found.lines())}; data.on_error='skip' leaves such images out")

    def report(findings: data.Findings) -> None:
        for line in findings.lines():
            log(f"note: {line}")
        for what, of in _passed_over(experiment).items():
            log(f"note: {what}: {of['count']}, such as {of['first']}")
        if findings.broken and stops:
            log("note: what reads one of these ends there; data.on_error='skip' leaves them out")
            return
        unreadable.update(path for path in findings.broken if path in read)
        if unreadable:
            log(
                f"note: at least {images(len(unreadable))} of the run cannot be read, as their headers show; "
                "these, and others that cannot be decoded, are left out"
            )

    scan = data.BackgroundScan(lambda: [*sources, *_other_splits(experiment)], report)
    scan.wait(SCAN)
    return scan


def _other_splits(experiment: Experiment) -> list[data.Source]:
    """Returns the splits of images of one's own that the run does not read, but a later evaluation may.

    Of other data sets none: to load one may cost more than a look at its files is worth.
    """
    if experiment.config["data"]["name"] != "folder":
        return []
    config = configs.from_dict(experiment.config)
    read = {"train", *(spec.split for spec in (*experiment.eval_specs, *experiment.at_end))}
    found = []
    for split in (split for split in SPLITS if split not in read):
        try:
            found.append(build.source(config, split))
        except (UserError, OSError):  # the data have no such split, or one that cannot be listed
            continue
    return found


def _passed_over(experiment: Experiment) -> dict[str, folder.OtherFiles]:
    """Returns what is in a folder of one's own and was surely meant: images of other formats, empty classes."""
    section = experiment.config["data"]
    if section["name"] != "folder":
        return {}
    found = folder.other_files(section["path"])
    return {k: v for k, v in found.items() if k not in ("hidden files", "files of other kinds")}


def _adaptation(experiment: Experiment) -> list[str]:
    """A note where low-rank adapters are trained beside the maps that they adapt."""
    if experiment.model.lora is None:
        return []
    kernel = f"model/backbone/{experiment.model.adapted()[0]}"
    if not optim.trained(experiment.groups, experiment.model.layers())(kernel):
        return []
    return [
        "model.lora adapts a backbone that is trained, too; --config.optim.backbone.freeze=True trains the adapters"
    ]


def _unread_weights(began: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """A note where a run that goes on is given other weights than it began from, which its checkpoint replaces."""
    before, now = began["model"].get("weights"), given["model"].get("weights")
    if before == now:
        return []
    return [
        f"model.weights={now!r} is not read: the run began from {before!r} and has a checkpoint"
    ]


def beginning(model: Model, section: Mapping[str, Any]) -> list[str]:
    """Returns a note where a network of which weights are published begins from random ones, and nobody said so.

    Args:
      model: that begins.
      section: the section `model` of its configuration; its field `weights` says that somebody thought of them.
    """
    if not model.sources or "weights" in section:
        return []
    return [
        f"model {model.name!r} begins from random weights; --config.model.weights=FILE names published ones, which "
        "`python -m dml_jax.models` lists"
    ]


def _summary(experiment: Experiment, plans: Plans, mesh: Mesh) -> str:
    options, source = experiment.options, experiment.source
    devices = f"{mesh.size} device{'s' * (mesh.size > 1)} ({mesh.devices.flat[0].device_kind})"
    return (
        f"{experiment.data_name}: {len(source)} images of {len(source.class_names)} classes; {options.epochs} epochs "
        f"of {plans.steps} steps of {options.batch_size} on {devices}"
    )
