"""What XLA's default optimisations change, in a process of its own (the tests' programs are not optimised)."""

import os
import subprocess
import sys

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from dml_jax import losses
from tests.losses import table

x = np.random.default_rng(0).normal(size=(22, 8)).astype(np.float32)
for name in ("sphere_face", "large_margin_softmax", "revisiting_softmax"):
    loss = losses.get(name)
    made = loss.init(jax.random.key(1), 11, 8)
    value = lambda x: loss.apply(made, x, table.LABELS)[0].compute()
    graded = jax.jit(jax.value_and_grad(value))
    for size in (1e3, 1e10, 1e14):
        result, gradient = graded(size * x)
        print(name, size, float(result) / size, bool(np.isfinite(gradient).all()))
"""


def test_huge_logits_are_finite():
    """Norms of 1e10: the largest logit was another number in the maximum than in the sum, and the loss NaN."""
    flags = os.environ["XLA_FLAGS"].replace("--xla_backend_optimization_level=0", "")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) == 9
    for i in range(0, 9, 3):
        # The logits are linear in the norm, and so is a loss that its largest logits decide.
        sizes = [float(line[2]) for line in lines[i : i + 3]]
        assert abs(sizes[1] / sizes[2] - 1) < 1e-4 and abs(sizes[0] / sizes[2] - 1) < 0.05, lines
        assert all(line[3] == "True" for line in lines[i : i + 3]), lines
