"""Writes docs/conformance.md: how far each loss is from its references and from itself.

    python -m tests.losses.conformance

Every figure is the largest error of the value and of all gradients, relative to the largest entry of each.
"""

# First of all: eight virtual devices and the compilation cache of the tests.
import tests.conftest  # noqa: F401

# isort: split
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dml_jax import losses
from dml_jax.training import state
from dml_jax.training.step import make_train_step
from tests.losses import table, test_golden, test_laws
from tests.training import standins

PATH = pathlib.Path(__file__).parents[2] / "docs" / "conformance.md"
COLUMNS = {
    "PML 2.9": 1e-10,
    "blocks": 1e-5,
    "2 devices": 1e-5,
    "4 devices": 1e-5,
    "8 devices": 1e-5,
    "micro-batches": 1e-5,
    "bfloat16": 0.1,
}
# So large that a step is large beside the parameters, whose rounding would show in the difference.
RATE = 1e4
HEAD = """# How exact the losses are

Made by `python -m tests.losses.conformance`; `tests/losses/test_conformance.py` checks the targets. Each figure is
the largest error of the value and of all gradients, relative to the largest entry of each, on an unbalanced batch with
singletons.

- **PML 2.9**: against PyTorch Metric Learning in float64 (`tests/golden/make_losses.py`), target {pml:g}. A dash: PML
  has no such loss, or is wrong on it; then the double loop of `tests/losses/table.py` is the reference. For losses made
  of losses `tests/losses/test_wrappers.py` has PML's values.
- **blocks, devices**: blocks of 5 anchors, and 2, 4, 8 devices, against dense on one, in float32, target {same:g}. A
  dash: the loss has no form in blocks, and refuses them.
- **micro-batches**: the parameters of a small network after one step of SGD, in micro-batches of 11 against the whole
  batch of 22, in float32, target {same:g}.
- **bfloat16**: embeddings rounded to bfloat16 against the same embeddings in float64. This is the rounding of the input
  (2^-9), as the loss magnifies it; the loss itself is computed in float32.

"""


def difference(got, want) -> float:
    """The largest error of any leaf, relative to that leaf's largest entry."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    worst = 0.0
    for g, w in pairs:
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        worst = max(worst, np.abs(g - w).max() / max(np.abs(w).max(), 1e-3))
    return worst


def against_pml(name: str, miner: str | None) -> float | None:
    key = f"{name}/{miner or ('refs' if name in table.VIEWS else 'none')}"
    if key not in test_golden.KEYS:
        return None
    with jax.enable_x64(True):
        got = test_golden.evaluate(key)
        parts = ["value", "gradient"] + ["weights"] * (f"loss/{key}/weights" in test_golden.GOLDEN)
        return max(float(test_golden.error(got, key, part)) for part in parts)


def micro_batched(name: str, miner: str | None) -> float:
    """The parameters after one step, in micro-batches of 11 against all 22 at once."""
    model, loss = standins.model(dim=table.DIM), test_laws.make(name, miner)
    if name in table.VIEWS:
        loss = losses.get("self_supervised", loss=loss, symmetric=False)
    rng = np.random.default_rng(5)
    batch = {
        "image": rng.integers(0, 256, (22, 2, 2, 1), dtype=np.uint8),
        "label": np.asarray(test_laws.labels_of(name, table.LABELS)),
    }
    after = []
    for size in (None, 11):
        tx, mesh = optax.sgd(RATE), state.make_mesh(1)
        with jax.set_mesh(mesh):
            step = make_train_step(model, loss, tx, micro_batch=size)
            start = state.init(model, loss, tx, 0, table.CLASSES)
            before = jax.device_get(start["params"])
            end, _ = step(state.replicate(start, mesh), state.shard(batch, mesh))
            after.append(jax.tree.map(np.subtract, jax.device_get(end["params"]), before))
    return difference(after[1], after[0])


def rounded(name: str, miner: str | None) -> float:
    """bfloat16 embeddings against float64 ones."""
    # Drawn once: under float64 the same key draws other numbers.
    made = test_laws.variables(test_laws.make(name, miner))
    params, state = made.get("params", {}), made.get("state", {})

    def value(dtype) -> jax.Array:
        x, valid = jnp.asarray(test_laws.batch(), dtype), jnp.ones(len(table.LABELS), bool)
        labels = test_laws.labels_of(name)
        return test_laws.graded(name, miner)(x, params, state, labels, valid)[0]

    low = value(jnp.bfloat16)
    with jax.enable_x64(True):
        return difference(low, value(jnp.float64))


def measure(name: str, miner: str | None) -> dict[str, float | None]:
    """A row of the table."""
    x = test_laws.batch()
    dense = test_laws.evaluate(name, x, miner=miner)
    row = {
        "PML 2.9": against_pml(name, miner),
        "blocks": None,
    }
    if test_laws.make(name, miner).takes_block:
        row["blocks"] = difference(test_laws.evaluate(name, x, miner=miner, block=5), dense)
    for devices in (2, 4, 8):
        with jax.set_mesh(test_laws.mesh(devices)):
            got = test_laws.evaluate(name, x, miner=miner)
        row[f"{devices} devices"] = difference(got, dense)
    return row | {"micro-batches": micro_batched(name, miner), "bfloat16": rounded(name, miner)}


def main() -> None:
    lines = [
        f"| loss | miner | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---:|' * len(COLUMNS)}",
    ]
    for name, miner in test_laws.CASES:
        row = measure(name, miner)
        cells = ["-" if row[c] is None else f"{row[c]:.1e}" for c in COLUMNS]
        lines.append(f"| {name} | {miner or ''} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
        test_laws.graded.cache_clear()
        jax.clear_caches()  # each program maps memory, of which a process has 65530 pieces
    head = HEAD.format(pml=COLUMNS["PML 2.9"], same=COLUMNS["blocks"])
    PATH.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
