"""The training loop: epochs of steps, evaluation, early stopping, checkpoints; it can be killed at any moment."""

import contextlib
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from dml_jax import run_folder
from dml_jax.processes import is_primary
from dml_jax.training.experiment import Experiment
from dml_jax.training.position import Better, Position
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
      The numbers of the last evaluation and of the one at the end (`evaluation.at_end`), as `split/metric`.

    Raises:
      UserError: settings that do not go together, data that cannot be read, a folder that holds another run, a loss
        that is not finite.
    """
    with contextlib.ExitStack() as stack:
        if is_primary():
            stack.enter_context(run_folder.held(workdir))
        experiment = Experiment.from_config(config)
        session, state, position = stack.enter_context(open_session(experiment, workdir))
        results = _train(session, state, position)
        session.reporter.finish()
    return results


def _train(session: Session, state: State, position: Position) -> dict[str, float]:
    """Trains from a position to the end of the run, and returns the numbers of its last evaluations."""
    experiment, options = session.experiment, session.experiment.options
    saver, reporter, validator = session.saver, session.reporter, session.validator
    results: dict[str, float] = {}
    try:
        untrained = options.epochs == 0
        if (experiment.before_training or untrained) and position.total == 0:
            results = validator.evaluate(state)
            reporter.evaluation(position, 0, results)
        if untrained:
            # The model as it begins is the result, for the commands that read a run.
            saver.save(state, position)
        while True:
            # Here is where a run goes on that was ended in an evaluation.
            if _is_evaluated(session, position):
                results = validator.evaluate(state)
                epochs = position.epoch + (position.step == session.plans.steps)
                reporter.evaluation(position, epochs, results)
                position = position.judged(results, experiment.monitors)
                saver.save_best(state, position)
                if options.patience is not None and position.waited >= max(options.patience, 1):
                    log(f"{_no_better(position, experiment.monitors)}: stopping early")
                    break
            if position.step == session.plans.steps:
                position = position.after_epoch()
            if position.epoch >= options.epochs:
                break
            state, position = _train_on(session, state, position)
        if experiment.at_end:
            results = {**results, **_at_end(session, state, position)}
    except Terminated:
        if saver.latest() is None:
            reporter.flush_metrics()
            saver.save(state, position)
        saver.wait()
        log(f"stopped: {saver.latest()} is written; the same command goes on from there")
        raise SystemExit(session.preemption.status) from None
    return results


def _at_end(session: Session, state: State, position: Position) -> dict[str, float]:
    """Evaluates the best model where the run is over."""
    step, variables = session.saver.best(state)
    results = session.validator.at_end(variables)
    log(f"the model of step {step}, which is evaluated at the end:")
    session.reporter.evaluation(position, position.epoch + (position.step > 0), results)
    return results


def _train_on(session: Session, state: State, position: Position) -> tuple[State, Position]:
    """Trains to the end of the epoch, or to an evaluation before it."""
    saver, reporter = session.saver, session.reporter
    if position.step == 0 and session.plans.needs_embeddings(position.epoch):
        storage = session.plans.storage_of(session.validator.embed_training_images(state))
        state = {**state, "storage": jax.device_put(storage, state["storage"].sharding)}
    while position.step < session.plans.steps:
        batch = session.feed.take(position, state)
        session.profiler.before(position.total + 1)
        # A transfer here would be a mistake that only costs time: nobody would notice.
        with jax.transfer_guard("disallow"):
            state, metrics = session.step(state, batch.arrays)
        position = position.after_step()
        session.profiler.after(position.total)
        session.feed.started(metrics)
        is_last = position.step == session.plans.steps
        reporter.step(position, metrics, batch.ids, is_last=is_last)
        ends = session.preemption.ends_after(position.total)
        is_evaluated = _is_evaluated(session, position)
        if is_last or ends or is_evaluated or saver.is_due(position):
            # A state that is not finite is not saved. The checkpoint is written before an evaluation: whatever ends
            # this run in it, the next one begins by evaluating.
            reporter.flush_metrics()
            saver.save(state, position)
        if ends:
            raise Terminated
        if is_evaluated:
            break
    return state, position


def _is_evaluated(session: Session, position: Position) -> bool:
    """Returns True where the model is to be evaluated at this position, and was not yet."""
    options, steps = session.experiment.options, session.plans.steps
    if position.total == position.evaluated:
        return False
    if options.eval_steps and position.total % options.eval_steps == 0:
        return True
    epochs = position.epoch + 1
    at_end = position.step == steps
    return at_end and (epochs % options.eval_epochs == 0 or epochs == options.epochs)


def _no_better(position: Position, monitors: Mapping[str, Better]) -> str:
    monitor = next(iter(monitors))
    best = position.best[monitor]
    return (
        f"no better {monitor} than {best.value:.4f} (step {best.step}) in {position.waited} "
        f"evaluation{'s' * (position.waited > 1)}"
    )
