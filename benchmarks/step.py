"""What the training loop costs beside its step: seconds of a step in the loop, and of the same step in a bare loop.

    python benchmarks/step.py [--steps 60] [--rounds 5] [--ready]

A run of the convnet on glyphs (32 x 32; a step takes about 100 ms on two cores) trains as
`dml train` does: pipeline, copies to the device, metrics every ten steps, progress. The bare loop calls the compiled
step on batches that lie on the device, and waits once at the end. Both take turns in one process; the median of the
ratios counts. Loading shares the cores with the step on CPUs, which has nothing to do with the loop: with --ready
batches are loaded before, and what is left is the loop's own, copies to the device included.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from dataclasses import replace

import jax
from machine import record

from dml_jax import config as configs
from dml_jax.training import feed
from dml_jax.training.experiment import Experiment
from dml_jax.training.loading import Loader
from dml_jax.training.loop import _train_on
from dml_jax.training.session import open_session


class Ready(Loader):
    """Loads four batches, and gives them again and again."""

    def train_batches(self, *arguments, **keywords):
        batches = list(itertools.islice(super().train_batches(*arguments, **keywords), 4))
        return map(dict, itertools.cycle(batches))


def config_of(batch: int):
    config = configs.new()
    config.data = configs.data(name="glyphs", size=32)
    config.sampler = {"name": "random", "length": batch * 10_000}
    config.model = {
        "name": "convnet",
        "width": 32,
        "depth": 2,
        "embedding_dim": 64,
        "image_size": 32,
    }
    config.loss = {"name": "multi_similarity"}
    config.train.update(batch_size=batch, epochs=1, monitor="", eval_steps=0, log_steps=10)
    config.evaluation.splits = ()
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--ready", action="store_true", help="batches are loaded before")
    given = parser.parse_args()
    feed.ENOUGH = 10**9
    config = config_of(given.batch)
    config.train.eval_steps = given.steps  # where `_train_on` returns
    experiment = Experiment.from_config(config)
    if given.ready:
        experiment = replace(experiment, loader=Ready(**vars(experiment.loader)))
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session(experiment, folder) as (session, state, position),
    ):
        batches = [session.feed.take(position, state).arrays for _ in range(4)]
        state, position = _train_on(session, state, position)
        ratios, seconds = [], []
        for _ in range(given.rounds):
            start = time.perf_counter()
            for i in range(given.steps):
                state, metrics = session.step(state, batches[i % len(batches)])
            jax.block_until_ready(metrics)
            bare = (time.perf_counter() - start) / given.steps
            save, session.saver.save = session.saver.save, lambda *_: None
            start = time.perf_counter()
            state, position = _train_on(session, state, position)
            jax.block_until_ready(state)
            looped = (time.perf_counter() - start) / given.steps
            session.saver.save = save
            ratios.append(looped / bare)
            seconds.append(bare)
        record(
            "step",
            "A step in the loop beside the step alone",
            [
                "batch, input",
                "steps a round",
                "ms of the step alone",
                "ms in the loop / alone",
                "range",
            ],
            [
                f"{given.batch}, {'ready' if given.ready else 'loaded'}",
                str(given.steps),
                f"{1e3 * statistics.median(seconds):.1f}",
                f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.3f} to {max(ratios):.3f}",
            ],
        )


if __name__ == "__main__":
    main()
