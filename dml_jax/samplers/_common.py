"""What the samplers share: the generator of an epoch and checks of their arguments."""

import numpy as np
from jaxtyping import Int


def generator(seed: int, epoch: int) -> np.random.Generator:
    """Philox under the key (seed, epoch).

    Never seed + epoch: epoch 1 of seed 0 would be epoch 0 of seed 1, and runs with neighbouring seeds
    would share their batches.
    """
    for name, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise ValueError(f"{name}={value} is negative; a whole number from 0 on is accepted")
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))


def check_length(length: int | None) -> None:
    """Raises ValueError unless `length` is None or positive."""
    if length is not None and length < 1:
        raise ValueError(
            f"length={length} images an epoch; None (the whole set) or at least 1 is accepted"
        )


def steps_of(labels: Int[np.ndarray, " n"], batch_size: int, length: int | None) -> int:
    """Whole batches in an epoch, floor(length / batch_size), where `length` is n by default.

    Raises ValueError where that is none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; at least 1 is accepted")
    if len(labels) == 0:
        raise ValueError("the set to sample from is empty: it has no labels")
    images = len(labels) if length is None else length
    steps = images // batch_size
    if steps == 0:
        raise ValueError(
            f"an epoch of {images} images has no whole batch of batch_size={batch_size}; "
            f"a batch_size up to {images} is accepted"
        )
    return steps
