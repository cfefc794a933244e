"""What a run works with between its start and its end."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from dml_jax import data, own_code, run_folder
from dml_jax.data.datasets import folder
from dml_jax.errors import UserError
from dml_jax.mesh import make_mesh
from dml_jax.processes import check_fixed_order, is_primary
from dml_jax.training import optim, same_data, tasks
from dml_jax.training import state as states
from dml_jax.training.experiment import Experiment
from dml_jax.training.feed import Feed
from dml_jax.training.planning import Plans
from dml_jax.training.position import Position
from dml_jax.training.preemption import Preemption
from dml_jax.training.profiling import Profiler
from dml_jax.training.reporting import Reporter, log
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
        for note in [*plans.notes(), *tasks.notes(experiment.eval_specs)]:
            log(f"note: {note}")

        length = plans.length(options.epochs)
        tx = optim.partition(experiment.groups, length, options.clip)
        place = run_folder.create(workdir)
        if is_primary():
            stack.enter_context(run_folder.locked(place))
            stack.enter_context(contextlib.closing(_scan(experiment)))
        if is_primary() and not (place / "config.json").exists():
            # Whatever ends a run before its first step, `--workdir` alone starts it again.
            run_folder.write_config(place, experiment.config)
        saver = stack.enter_context(contextlib.closing(Saver(experiment, place, plans)))
        images = same_data.of_experiment(experiment)
        # Before the checkpoint is read: other classes would be an architecture that differs.
        notes = [] if saver.latest() is None else same_data.check(place, images)
        state, position = saver.begin(tx, mesh)
        if saver.latest() is not None:
            log(f"going on from {saver.latest()}")
            for note in notes:
                log(f"note: {note}")
        elif is_primary():
            same_data.write(place, images)
        if is_primary():
            run_folder.write_config(place, experiment.config)
            own_code.store(place, experiment.config)

        skipped = Counter[str]()
        reporter = Reporter(experiment, place, position, length, skipped, saver.latest)
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
            ema=options.ema,
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


def _scan(experiment: Experiment) -> data.BackgroundScan:
    """Begins to look for what is wrong with the files of the images, and says it when all are seen.

    Raises:
      UserError: files are missing or empty, and an image that cannot be decoded ends the run.
    """
    sources = [experiment.source, *(s for e in experiment.eval_specs for s in e.sources.values())]
    stops = experiment.loader.options.on_error == "raise"
    found = data.Findings()
    data.sizes(dict.fromkeys(path for s in sources for path, _ in data.paths_of(s)), found)
    if found.broken and stops:
        raise UserError(f"{'; '.join(found.lines())}; data.on_error='skip' leaves such images out")

    def report(findings: data.Findings) -> None:
        for line in findings.lines():
            log(f"note: {line}")
        for what, of in _passed_over(experiment).items():
            log(f"note: {what}: {of['count']}, such as {of['first']}")
        if findings.broken and stops:
            log("note: the run will end at one of these; data.on_error='skip' leaves them out")

    scan = data.BackgroundScan(sources, report)
    scan.wait(SCAN)
    return scan


def _passed_over(experiment: Experiment) -> dict[str, folder.OtherFiles]:
    """Returns what is in a folder of one's own and was surely meant: images of other formats, empty classes."""
    section = experiment.config["data"]
    if section["name"] != "folder":
        return {}
    found = folder.other_files(section["path"])
    return {k: v for k, v in found.items() if k not in ("hidden files", "files of other kinds")}


def _summary(experiment: Experiment, plans: Plans, mesh: Mesh) -> str:
    options, source = experiment.options, experiment.source
    devices = f"{mesh.size} device{'s' * (mesh.size > 1)} ({mesh.devices.flat[0].device_kind})"
    return (
        f"{experiment.data_name}: {len(source)} images of {len(source.class_names)} classes; {options.epochs} epochs "
        f"of {plans.steps} steps of {options.batch_size} on {devices}"
    )
