"""The training loop: epochs of steps, evaluation, early stopping, checkpoints; it can be killed at any moment."""

from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from dml_jax.training import state as states
from dml_jax.training.experiment import Experiment
from dml_jax.training.position import Position
from dml_jax.training.preemption import Terminated
from dml_jax.training.reporting import log
from dml_jax.training.session import Session, open_session
from dml_jax.training.state import State


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
    with open_session(experiment, workdir) as (session, state, position):
        results = _train(session, state, position)
        session.reporter.finish()
    return results


def _train(session: Session, state: State, position: Position) -> dict[str, float]:
    """Trains from a position to the end of the run, and returns the numbers of the last evaluation."""
    experiment, options = session.experiment, session.experiment.options
    saver, reporter, validator = session.saver, session.reporter, session.validator
    results: dict[str, float] = {}
    try:
        if experiment.before_training and position.total == 0:
            results = validator.evaluate(state)
            reporter.evaluation(position, 0, results)
        while position.epoch < options.epochs:
            if position.step == 0 and session.plans.needs_embeddings(position.epoch):
                storage = session.plans.storage_of(validator.embed_training_images(state))
                state = {**state, "storage": states.replicate(storage, session.mesh)}
            for arrays, ids, is_last in _batches(session, state, position):
                session.profiler.before(position.total + 1)
                # A transfer here would be a mistake that only costs time: nobody would notice.
                with jax.transfer_guard("disallow"):
                    state, metrics = session.step(state, arrays)
                position = position.after_step()
                session.profiler.after(position.total)
                reporter.step(position, metrics, ids, is_last=is_last)
                ends = session.preemption.ends_after(position.total)
                if is_last or ends or saver.is_due(position):
                    # A state that is not finite is not saved.
                    reporter.flush_metrics()
                    saver.save(state, position)
                if ends:
                    raise Terminated
            # The checkpoint of the epoch's end is written before the evaluation: whatever ends this run from here on,
            # the next one begins by evaluating.
            results = validator.evaluate(state)
            reporter.evaluation(position, position.epoch + 1, results)
            position = position.after_epoch()
            if options.monitor:
                position = position.judged(results[options.monitor], experiment.monitor_better)
                if position.waited == 0:
                    saver.save_best(state, position)
                if options.patience is not None and position.waited >= max(options.patience, 1):
                    log(f"{_no_better(options.monitor, position)}: stopping early")
                    break
    except Terminated:
        if saver.latest() is None:
            reporter.flush_metrics()
            saver.save(state, position)
        saver.wait()
        log(f"stopped: {saver.latest()} is written; the same command goes on from there")
        raise SystemExit(session.preemption.status) from None
    return results


def _batches(
    session: Session, state: State, position: Position
) -> Iterator[tuple[dict[str, jax.Array], Any, bool]]:
    """Yields what is left of an epoch: (a batch on the devices, the ids of its images, whether it is the last)."""
    experiment, plans = session.experiment, session.plans
    plan = plans.plan(position.epoch, position.step, state)
    batches = experiment.loader.train_batches(
        experiment.source,
        plan,
        experiment.labels,
        epoch=position.epoch,
        start_step=position.step,
        skipped=session.skipped,
    )
    for step, batch in enumerate(batches, position.step + 1):
        ids = batch["id"] if plans.updates_storage else batch.pop("id")
        yield states.shard(batch, session.mesh), ids, step == len(plan)


def _no_better(monitor: str, position: Position) -> str:
    best = position.best
    assert best is not None  # an evaluation was judged
    return (
        f"no better {monitor} than {best.value:.4f} (step {best.step}) for {position.waited} epochs"
    )
