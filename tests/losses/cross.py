"""Every loss with every miner, once: writes docs/cross_table.md.

    python -m tests.losses.cross [--part i/n] [--losses a,b]

A part is every n-th loss; its rows take the place of those in the file.
"""

# First of all: eight virtual devices and the compilation cache of the tests.
import tests.conftest  # noqa: F401

# isort: split
import argparse
import fcntl
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dml_jax import losses, miners
from tests.losses import table, test_laws

PATH = pathlib.Path(__file__).resolve().parents[2] / "docs" / "cross_table.md"
HEAD = """# Every loss with every miner

Made by `python -m tests.losses.cross`: 22 samples in classes of 1 to 6, float32. A number is the largest difference,
over the value and the gradient, between eight devices and one, relative to the largest entry of each. Values and
gradients are finite wherever there is a number. "-": the loss takes no miner; "batch only": the loss has references
other than the batch, and the miner, which names an anchor as its own partner, says that it takes none. Losses that
wrap others (multiple, cross_batch_memory, self_supervised) take the miner in the loss inside them.
"""


def names() -> list[str]:
    """The losses of the table, without their variants."""
    return sorted({name.partition("/")[0] for name in table.LOSSES})


def with_miner(name: str, miner: str) -> losses.Loss | None:
    """None where the loss refuses it."""
    variants = [n for n in table.LOSSES if n.partition("/")[0] == name]
    hyper = table.LOSSES[name if name in variants else variants[0]][0]
    try:
        return losses.get(name, miner=miner, **hyper)
    except ValueError:
        return None


def measure(name: str, miner: str) -> str:
    """The cell of a loss and a miner."""
    loss = with_miner(name, miner)
    if loss is None:
        return "-"
    x, labels, key = test_laws.batch(), test_laws.LABELS, jax.random.key(3)
    made = test_laws.variables(loss)

    def value(x):
        return loss.apply(made, x, labels, key=key, **test_laws.references(name, x))[0].compute()

    def graded(x):
        return jax.jit(jax.value_and_grad(value))(x)

    try:
        dense = graded(x)
    except ValueError as error:
        if "references that are not the batch" not in str(error):
            raise
        return "batch only"
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in dense):
        return "not finite"
    with jax.set_mesh(test_laws.mesh(8)):
        on_devices = graded(x)
    worst = 0.0
    for got, want in zip(on_devices, dense, strict=True):
        size = max(float(jnp.max(jnp.abs(want))), 1e-3)
        worst = max(worst, float(jnp.max(jnp.abs(got - want))) / size)
    return f"{worst:.0e}" if worst else "0"


def read(text: str) -> dict[str, list[str]]:
    """The rows of the page: loss -> cells by miner."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    if not rows or rows[0][1:] != miners.available():
        return {}
    return {row[0]: row[1:] for row in rows[1:]}


def store(name: str, cells: list[str]) -> None:
    """Puts a row into the page, which other parts may be writing to."""
    columns = miners.available()
    with PATH.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        rows = read(file.read()) | {name: cells}
        lines = [HEAD, f"| loss | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in sorted(rows.items())]
        file.truncate(0)
        file.write("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default="1/1", help="i/n: the i-th of n parts")
    parser.add_argument("--losses", help="names, by commas, instead of a part")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    chosen = args.losses.split(",") if args.losses else names()[part - 1 :: parts]
    for name in chosen:
        cells = [measure(name, miner) for miner in miners.available()]
        store(name, cells)
        print(name, *cells, flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
