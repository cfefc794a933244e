"""Random numbers on the host: one Philox generator for every purpose, from a registry of streams that never meet.

A generator is a pure function of what it is for, so that threads, processes and a run that goes on after it was killed
draw the same numbers. The key is the pair (seed, epoch), never seed + epoch: epoch 1 of seed 0 would be epoch 0 of seed
1, and runs with neighbouring seeds would share their batches.
"""

from typing import Literal

import numpy as np

from dml_jax.errors import UserError

Stream = Literal[
    "epoch_plan",
    "augment",
    "replace_image",
    "split_classes",
    "step_plan",
    "sampler_set",
    "draw_glyphs",
    "toy_points",
    "evaluation",
    "train_classes",
    "train_images",
    "label_noise",
]

# The numbers are part of what a seed means: changing one changes the runs of everybody.
STREAMS: dict[str, int] = {
    "epoch_plan": 0,
    "augment": 1,
    "replace_image": 2,
    "split_classes": 3,
    "step_plan": 4,
    "sampler_set": 5,
    # Number 0, too: the `step` of a glyph is its code point, which is never 0, and the toy plans no epochs.
    "draw_glyphs": 0,
    "toy_points": 0,
    # An evaluation plans no epochs either; its seed says which items it looks at.
    "evaluation": 0,
    "train_classes": 6,
    "train_images": 7,
    "label_noise": 8,
}


def generator(
    stream: Stream, seed: int, *, epoch: int = 0, step: int = 0, place: int = 0
) -> np.random.Generator:
    """Returns the generator of one purpose.

    Args:
      stream: the purpose, a key of `STREAMS`.
      seed: of the run, from 0 on.
      epoch: from 0 on.
      step: of the epoch, where every step draws on its own.
      place: in the batch, where every image draws on its own.

    Raises:
      UserError: a negative seed or epoch.

    >>> first, second = (generator("augment", 0, epoch=1, step=2, place=3).random() for _ in range(2))
    >>> first == second
    True
    """
    for name, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise UserError(f"{name}={value} is negative; a whole number from 0 on is accepted")
    # The first word of the counter counts draws: it has 2^64 of them to itself.
    counter = np.array([0, STREAMS[stream], step, place], np.uint64)
    key = np.array([seed, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
