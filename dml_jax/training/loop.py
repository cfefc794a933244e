"""The training loop: epochs of steps, validation, early stopping, checkpoints; it can be killed at any moment."""

import math
import pathlib
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dml_jax import config as configs
from dml_jax import data, evaluation, report, run_folder
from dml_jax.checkpoints import Checkpoints
from dml_jax.console import Progress, log
from dml_jax.evaluation.embed import Embedded
from dml_jax.training import build, optim, score, tasks
from dml_jax.training import state as states
from dml_jax.training.planning import Plans
from dml_jax.training.step import make_train_step
from dml_jax.training.trackers import Trackers


class Terminated(Exception):
    """SIGTERM came while the state was already written."""


class Signal:
    """Remembers SIGTERM, so that the loop can end where it likes. With several processes all end at one step."""

    def __init__(self) -> None:
        self.came = False
        self.alone = jax.process_count() == 1
        # With several processes the coordination service handles the signal.
        self.before = signal.signal(signal.SIGTERM, self._note) if self.alone else None

    def _note(self, *_: object) -> None:
        self.came = True

    def at(self, step: int) -> bool:
        """Whether to end after this step."""
        return self.came if self.alone else multihost_utils.reached_preemption_sync_point(step)

    def guard(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, or Terminated between two of them."""
        for batch in batches:
            if self.came:
                raise Terminated
            yield batch

    def restore(self) -> None:
        """Gives the signal back to who handled it before."""
        if self.alone:
            signal.signal(signal.SIGTERM, self.before)


def train(config: Any, workdir: str) -> dict[str, float]:
    """Trains what the config says, from the last checkpoint of `workdir` where there is one.

    Returns the metrics of the last evaluation, `split/metric`. All of a run's files are in `workdir`: `config.json`,
    `metrics.csv`, `tensorboard/`, `checkpoints/`, `curves.png`.

    Raises ValueError for settings that do not go together, data that cannot be read, a folder that holds another
    run, a loss that is not finite.
    """
    mesh = states.make_mesh(config.train.devices)
    with jax.set_mesh(mesh):
        return _train(config, workdir, mesh)


def _train(config: Any, workdir: str, mesh: Any) -> dict[str, float]:
    # ---- What is trained, on what.
    quiet = jax.process_index() > 0
    tell = (lambda message: None) if quiet else log
    size, epochs, monitor = config.train.batch_size, config.train.epochs, config.train.monitor
    splits = tuple(config.evaluation.splits)
    tasks.check_reported(config)
    model, loss = build.model(config.model), build.loss(config)
    source = build.source(config, "train")
    held = [tasks.task(config, split, model) for split in splits]
    labels = build.labels(loss.relation, source)
    views = config.train.views
    build.check_views(loss, views)
    build.check_pairs(loss, labels, views)
    sampler = build.sampler(config.sampler)
    plans = Plans(sampler, source, size, config.seed, config.data.threads)
    epoch_steps = plans.steps
    tx = optim.build(
        config.optim.to_dict(), total_steps=epochs * epoch_steps, epoch_steps=epoch_steps
    )
    classes = len(source.class_names)
    tell(
        f"{config.data.name}: {len(source)} images of {classes} classes; {epochs} epochs of {epoch_steps} steps "
        f"of {size} on {mesh.size} device{'s' * (mesh.size > 1)} ({mesh.devices.flat[0].device_kind})"
    )
    for note in plans.notes():
        tell(f"note: {note}")

    # ---- The state, new or from the last checkpoint.
    checkpoints = Checkpoints.open(workdir)
    # A loss against class weights has them for the classes of its level.
    weighed = classes if labels.ndim == 1 else int(loss.relation.classes(labels).max()) + 1
    init = lambda: states.init(model, loss, tx, config.seed, weighed, plans.stored)
    progress: dict[str, Any] = {"epoch": 0, "step": 0, "best": None, "waited": 0}
    meta = checkpoints.meta()
    if meta is None:
        host = init()
    else:
        run_folder.check_same(meta["config"], configs.to_dict(config), workdir)
        host = plans.restore(checkpoints.restore({**jax.eval_shape(init), **plans.kept()}))
        progress = meta["progress"]
        tell(f"going on from {checkpoints.latest()}")
    done = int(host["step"])
    state = states.replicate(host, mesh)
    step = make_train_step(
        model, loss, tx, micro_batch=config.train.micro_batch, block=config.train.block
    )

    # ---- Reports, and what ends or interrupts the loop.
    if not quiet:
        run_folder.write_config(workdir, configs.to_dict(config))
    reports = (
        None
        if quiet
        else Trackers(pathlib.Path(workdir), done, configs.to_dict(config), config.train.wandb)
    )
    bar = Progress(
        epochs * epoch_steps * size,
        done * size,
        show=not quiet,
        seconds=config.train.log_seconds,
    )
    terminated = Signal()
    embedder = score.embedder(model)
    outputs = score.outputs(model, tuple(config.evaluation.embeddings))
    skipped: Counter[str] = Counter()
    pending: list[Any] = []
    saved = time.monotonic()
    results: dict[str, float] = {}

    def settle() -> None:
        """Takes note of the step before: its metrics have come by now, and waiting for the newest would stall."""
        if not pending:
            return
        number, epoch, ids, last, metrics = pending.pop()
        metrics = {k: v.item() for k, v in jax.device_get(metrics).items()}
        if not metrics.pop("finite"):
            raise ValueError(_not_finite(number, metrics, ids, checkpoints.latest()))
        bar.update(size, epoch + 1, number, metrics["loss"])
        if reports and (last or number % config.train.log_steps == 0):
            row = {"step": number, "epoch": epoch + 1, "loss": metrics["loss"], **metrics}
            if rate := bar.rate():
                row["images_per_second"] = rate
            if config.data.on_error == "skip":
                row["skipped"] = sum(skipped.values())
            reports.write(row)

    def save() -> None:
        nonlocal saved
        settle()
        host = {**states.to_host(state), **plans.kept()}
        checkpoints.save(done, host, {"progress": progress, **_origin(config)})
        saved = time.monotonic()

    def embedded(of: data.Source, apply: Any) -> Embedded:
        variables = {k: state[k]["model"] for k in ("params", "state")}
        batches = score.batches(config, of, skipped)
        return evaluation.embed(apply, variables, terminated.guard(batches))

    def validate(epoch: int) -> None:
        for task in held:
            found = score.embedded(task, lambda source: embedded(source, outputs))
            results.update(score.reported(score.metrics(task, found), task.split))
        if held and reports:
            reports.write({"step": done, "epoch": epoch, **results})
            tell(f"epoch {epoch}  " + "  ".join(f"{k} {v:.4f}" for k, v in results.items()))
        if monitor and math.isnan(results[monitor]):
            raise ValueError(
                f"{monitor} is not a number: no class of the split has two images; a split where some have, or "
                "train.monitor='', is accepted"
            )

    # ---- The loop.
    try:
        if config.evaluation.before_training and done == 0:
            validate(0)
        while progress["epoch"] < epochs:
            epoch = progress["epoch"]
            if progress["step"] == 0 and plans.embeds_before(epoch):
                storage = states.replicate(plans.filled(embedded(source, embedder)), mesh)
                state = {**state, "storage": storage}
            plan = plans.of(epoch, progress["step"], state)
            batches = data.train_batches(
                source,
                plan,
                labels=labels,
                transform=build.transform(config.data.augment),
                seed=config.seed,
                epoch=epoch,
                views=views,
                start_step=progress["step"],
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                skipped=skipped,
                **build.pipeline(config.data),
            )
            for batch in batches:
                ids = batch["id"] if plans.updates else batch.pop("id")
                arrays = states.shard(batch, mesh)
                # A transfer here would be a mistake that only costs time: nobody would notice.
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, arrays)
                settle()
                done += 1
                progress = {**progress, "step": progress["step"] + 1}
                last = progress["step"] == len(plan)
                pending.append((done, epoch, ids, last, metrics))
                stop = terminated.at(done)
                if last or stop or _due(config.train, done, saved):
                    save()
                if stop:
                    raise Terminated
            # The checkpoint of the epoch's end is written before validation: whatever ends this run from here on,
            # the next one begins by validating.
            validate(epoch + 1)
            bar.pause()
            progress = {**progress, "epoch": epoch + 1, "step": 0}
            if not monitor:
                continue
            progress = _judged(progress, results[monitor], done)
            if progress["waited"] == 0:
                checkpoints.save_best(done, states.to_host(state), _origin(config))
            patience = config.train.patience
            if patience is not None and progress["waited"] >= patience:
                best = progress["best"]
                tell(
                    f"no better {monitor} than {best['value']:.4f} (step {best['step']}) for "
                    f"{progress['waited']} epochs: stopping early"
                )
                break
    except Terminated:
        if checkpoints.latest() is None:
            save()
        checkpoints.wait()
        tell(f"SIGTERM: {checkpoints.latest()} is written; the same command goes on from there")
        raise SystemExit(0) from None
    finally:
        terminated.restore()
        bar.close()
        plans.close()
        checkpoints.close()
        if reports:
            reports.close()
    if skipped:
        tell(f"{sum(skipped.values())} times an image could not be decoded: {', '.join(skipped)}")
    if reports:
        report.training_curves(reports.table.path, pathlib.Path(workdir) / "curves.png")
    return results


def _origin(config: Any) -> dict[str, Any]:
    return {"config": configs.to_dict(config)}


def _due(section: Any, done: int, saved: float) -> bool:
    """Whether a checkpoint is due within an epoch; process 0 has the clock."""
    every, minutes = section.checkpoint_steps, section.checkpoint_minutes
    if every and done % every == 0:
        return True
    due = bool(minutes) and time.monotonic() - saved >= 60 * minutes
    if jax.process_count() == 1:
        return due
    asked = bool(minutes) and done % section.log_steps == 0
    return asked and bool(multihost_utils.broadcast_one_to_all(due))


def _judged(progress: dict[str, Any], value: float, done: int) -> dict[str, Any]:
    """The progress after an epoch of this value: the best so far, and for how many epochs it has stood."""
    best = progress["best"]
    if best is None or value > best["value"]:
        return {**progress, "best": {"value": value, "step": done}, "waited": 0}
    return {**progress, "waited": progress["waited"] + 1}


def _not_finite(number: int, metrics: dict[str, float], ids: np.ndarray, good: str | None) -> str:
    shown = ", ".join(map(str, ids[:64].tolist()))
    more = f" and {len(ids) - 64} more" if len(ids) > 64 else ""
    return (
        f"step {number} is not finite: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}, update norm "
        f"{metrics['update_norm']}; images of its batch by id: {shown}{more}; last good checkpoint: {good or 'none'}"
    )
