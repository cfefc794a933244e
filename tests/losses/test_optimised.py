"""Programs as users run them. The laws of the batch on one device (test_laws.py) are such programs; here is what they
show alone, and that they are what they are said to be."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import optimised
from tests.losses import table, test_laws

# Their values are linear in the norm once the norm is large, as the logits are.
UNBOUNDED = ("large_margin_softmax", "revisiting_softmax", "sphere_face")


@pytest.mark.parametrize("name", test_laws.ALL)
def test_huge_norms(name):
    """Norms of 1e10: in optimised code a largest logit was another number in the maximum than in the sum, and NaN."""
    if name in table.VIEWS:
        return  # sums of fourth powers of the entries, beyond float32
    sizes = (1e3, 1e10, 1e14)
    results = [test_laws.evaluate(name, np.float32(size) * test_laws.batch()) for size in sizes]
    test_laws.assert_finite(results)
    if name in UNBOUNDED:
        values = [float(value) / size for (value, _), size in zip(results, sizes, strict=True)]
        assert abs(values[1] / values[2] - 1) < 1e-4 and abs(values[0] / values[2] - 1) < 0.05


SCRIPT = """
import sys
import jax
import numpy as np
from tests.losses.test_optimised import bits

print(*bits(jax.jit))
"""


def bits(jit):
    """Every bit of a gradient that rounds otherwise where XLA optimises otherwise."""
    loss = test_laws.make("histogram")
    value = lambda x: loss.apply({}, x, table.LABELS, block=5)[0].compute()
    return np.asarray(jit(jax.grad(value))(test_laws.batch())).view(np.int32).ravel().tolist()


def test_they_are_what_runs_without_flags():
    """Bit by bit what a process computes that has no flags of XLA; the tests' own programs are not."""
    code = "import os, tests.conftest; os.environ['XLA_FLAGS'] = ''\n" + SCRIPT
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True
    )
    want = [int(word) for word in run.stdout.split()]
    assert bits(optimised.jit) == want
    assert bits(jax.jit) != want
