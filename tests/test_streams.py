"""Random streams: the bits of each are fixed, and no two of them meet."""

import itertools

import numpy as np
import pytest

from dml_jax import UserError, streams


def draws(stream="augment", seed=0, **where):
    return streams.generator(stream, seed, **where).integers(2**63, size=4).tolist()


def test_the_bits_are_philox_s():
    """Key (seed, epoch), counter (draws, stream, step, place): what a seed means must never change."""
    for stream, number in (("epoch_plan", 0), ("augment", 1), ("step_plan", 4)):
        philox = np.random.Philox(
            key=np.array([7, 2], np.uint64), counter=np.array([0, number, 3, 5], np.uint64)
        )
        want = np.random.Generator(philox).integers(2**63, size=4).tolist()
        assert draws(stream, 7, epoch=2, step=3, place=5) == want


def test_no_two_streams_meet():
    """Nor do seed and epoch trade places, as they would in seed + epoch, nor step and place."""
    numbers = {number: name for name, number in streams.STREAMS.items()}
    found = [
        draws(name, seed, epoch=epoch, step=step, place=place)
        for name in numbers.values()
        for seed, epoch, step, place in itertools.product((0, 1), repeat=4)
    ]
    assert len({tuple(row) for row in found}) == len(found) == 16 * len(numbers)
    # The negative control.
    summed = [np.random.default_rng(seed + epoch).random() for seed, epoch in ((0, 1), (1, 0))]
    assert summed[0] == summed[1]


def test_streams_that_share_a_number():
    """Three share number 0 with the plans of epochs, as their comments say; a new stream gets one of its own."""
    numbers = list(streams.STREAMS.values())
    shared = {name for name, n in streams.STREAMS.items() if numbers.count(n) > 1}
    assert shared == {"epoch_plan", "draw_glyphs", "toy_points", "evaluation"}


def test_many_draws_stay_in_their_stream():
    """The first word of the counter counts them; the stream, in the second, is never reached."""
    rng = streams.generator("augment", 0)
    rng.bit_generator.advance(2**40)
    counter = rng.bit_generator.state["state"]["counter"]
    assert counter.tolist() == [2**40, 1, 0, 0]


@pytest.mark.parametrize(("seed", "epoch", "words"), [(-1, 0, "seed=-1"), (0, -2, "epoch=-2")])
def test_negative_numbers(seed, epoch, words):
    with pytest.raises(UserError, match=f"{words} is negative; a whole number from 0 on"):
        streams.generator("augment", seed, epoch=epoch)
