"""The training loop: epochs of steps, evaluation, early stopping, checkpoints; it can be killed at any moment."""

import contextlib
from collections import Counter

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dml_jax import run_folder
from dml_jax.processes import is_primary
from dml_jax.training import optim
from dml_jax.training import state as states
from dml_jax.training.experiment import Experiment
from dml_jax.training.planning import Plans
from dml_jax.training.position import Position
from dml_jax.training.preemption import Preemption, Terminated
from dml_jax.training.reporting import Reporter, log
from dml_jax.training.saving import Saver
from dml_jax.training.step import make_train_step
from dml_jax.training.validation import Validator


def train(config: ConfigDict, workdir: str) -> dict[str, float]:
    """Trains what the configuration says, from the last checkpoint of `workdir` where there is one.

    All files of a run are in its folder: `config.json`, `metrics.csv`, `tensorboard/`, `checkpoints/`, `curves.png`.

    Args:
      config: the configuration, as `dml_jax.config.load` returns it.
      workdir: the folder of the run.

    Returns:
      The numbers of the last evaluation, as `split/metric`.

    Raises:
      UserError: settings that do not go together, data that cannot be read, a folder that holds another run, a loss
        that is not finite.
    """
    experiment = Experiment.from_config(config)
    mesh = states.make_mesh(experiment.options.devices)
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        return _train(experiment, workdir, mesh, stack)


def _train(
    experiment: Experiment, workdir: str, mesh: Mesh, stack: contextlib.ExitStack
) -> dict[str, float]:
    options, skipped = experiment.options, Counter[str]()
    plans = stack.enter_context(contextlib.closing(Plans.of(experiment)))
    length = plans.length(options.epochs)
    log(_summary(experiment, plans, mesh))
    for note in plans.notes():
        log(f"note: {note}")

    # What is trained: new, or from the last checkpoint.
    folder = run_folder.create(workdir)
    saver = stack.enter_context(contextlib.closing(Saver(experiment, folder, plans)))
    tx = optim.partition(experiment.groups, length)
    state, position = saver.begin(tx)
    if saver.latest() is not None:
        log(f"going on from {saver.latest()}")
    if is_primary():
        run_folder.write_config(folder, experiment.config)
    state = states.replicate(state, mesh)
    step = make_train_step(
        experiment.model, experiment.loss, tx, micro_batch=options.micro_batch, block=options.block
    )

    # What reports, evaluates and ends it.
    reporter = stack.enter_context(
        contextlib.closing(
            Reporter(experiment, folder, position, length.total_steps, skipped, saver.latest)
        )
    )
    preemption = stack.enter_context(Preemption())
    validator = Validator(experiment, preemption, skipped)
    results: dict[str, float] = {}

    try:
        if experiment.before_training and position.total == 0:
            results = validator.evaluate(state)
            reporter.evaluation(position, 0, results)
        while position.epoch < options.epochs:
            epoch = position.epoch
            if position.step == 0 and plans.needs_embeddings(epoch):
                storage = plans.storage_of(validator.embed_training_images(state))
                state = {**state, "storage": states.replicate(storage, mesh)}
            plan = plans.plan(epoch, position.step, state)
            batches = experiment.loader.train_batches(
                experiment.source,
                plan,
                experiment.labels,
                epoch=epoch,
                start_step=position.step,
                skipped=skipped,
            )
            for batch in batches:
                ids = batch["id"] if plans.updates_storage else batch.pop("id")
                arrays = states.shard(batch, mesh)
                # A transfer here would be a mistake that only costs time: nobody would notice.
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, arrays)
                position = position.after_step()
                is_last = position.step == len(plan)
                reporter.step(position, metrics, ids, is_last=is_last)
                ends = preemption.ends_after(position.total)
                if is_last or ends or saver.is_due(position):
                    # A state that is not finite is not saved.
                    reporter.flush_metrics()
                    saver.save(state, position)
                if ends:
                    raise Terminated
            # The checkpoint of the epoch's end is written before the evaluation: whatever ends this run from here on,
            # the next one begins by evaluating.
            results = validator.evaluate(state)
            reporter.evaluation(position, epoch + 1, results)
            position = position.after_epoch()
            if options.monitor:
                position = position.judged(results[options.monitor], experiment.monitor_better)
                if position.waited == 0:
                    saver.save_best(state, position)
                if options.patience is not None and position.waited >= max(options.patience, 1):
                    log(f"{_no_better(experiment, position)}: stopping early")
                    break
    except Terminated:
        if saver.latest() is None:
            reporter.flush_metrics()
            saver.save(state, position)
        saver.wait()
        log(f"SIGTERM: {saver.latest()} is written; the same command goes on from there")
        raise SystemExit(0) from None
    reporter.finish()
    return results


def _summary(experiment: Experiment, plans: Plans, mesh: Mesh) -> str:
    options, source = experiment.options, experiment.source
    devices = f"{mesh.size} device{'s' * (mesh.size > 1)} ({mesh.devices.flat[0].device_kind})"
    return (
        f"{experiment.data_name}: {len(source)} images of {len(source.class_names)} classes; {options.epochs} epochs "
        f"of {plans.steps} steps of {options.batch_size} on {devices}"
    )


def _no_better(experiment: Experiment, position: Position) -> str:
    best, monitor = position.best, experiment.options.monitor
    assert best is not None  # an evaluation was judged
    return (
        f"no better {monitor} than {best.value:.4f} (step {best.step}) for {position.waited} epochs"
    )
