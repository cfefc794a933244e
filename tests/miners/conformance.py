"""Writes docs/conformance_miners.md: how each miner's choice compares with PML's and with itself.

python -m tests.miners.conformance
"""

# First of all: eight virtual devices and the compilation cache of the tests.
import tests.conftest  # noqa: F401

# isort: split
import pathlib

import jax
import numpy as np

from tests.losses import test_laws
from tests.miners import table, test_choices

PATH = pathlib.Path(__file__).resolve().parents[2] / "docs" / "conformance_miners.md"
COLUMNS = ("PML 2.9", "blocks", "2 devices", "4 devices", "8 devices")
HEAD = f"""# Miners: the same choice as PML and as themselves

Made by `python -m tests.miners.conformance`. Batches of 24 samples with duplicates within and across classes and
single samples: as they are, in one class, without positives, against 15 references ({len(test_choices.KINDS)} batches).

PML 2.9: pairs or triplets chosen by both, and by one alone (float64, normalised embeddings,
`tests/golden/make_miners.py`). hdc may differ in which of equally hard pairs at its cut it takes. Miners that draw have
their probabilities tested instead (`tests/miners/test_draws.py`), and so have those of the ICML 2020 study, which PML
does not have (`tests/miners/test_revisiting.py`). The other columns: pairs whose weight differs from
that of the dense choice on one device, in blocks of 5 anchors and on devices (float32).
"""


def against_pml(name: str) -> str:
    """Chosen by both and by one alone, over all batches."""
    if name in table.STUDY:
        return "-"
    if name in table.DRAWN:
        return "probabilities"
    both = alone = 0
    with jax.enable_x64(True):
        for kind in test_choices.KINDS:
            for side, rows in test_choices.chosen(name, kind).items():
                got, want = (
                    {tuple(int(i) for i in row) for row in x}
                    for x in (rows, test_choices.golden(name, kind, side))
                )
                both, alone = both + len(got & want), alone + len(got ^ want)
    return f"{both}, {alone}"


def against_itself(name: str) -> list[str]:
    """How many pairs weigh another, in blocks and on devices."""
    miner, key = test_choices.make(name), jax.random.key(5)
    found = []
    for block, devices in [(5, 1), (None, 2), (2, 4), (None, 8)]:
        differ = 0
        for kind in ("batch",) if name in table.BATCH_ALONE else ("batch", "references"):
            x, labels, refs = test_choices.arrays(kind, np.float32)
            want = miner(x, labels, key=key, **refs).selection.pairs()
            with jax.set_mesh(test_laws.mesh(devices)):
                got = miner(x, labels, key=key, block=block, **refs).selection.pairs()
            both = zip(got, want, strict=True)
            differ += sum(int(np.sum(np.asarray(g) != np.asarray(w))) for g, w in both)
        found.append(str(differ))
    return found


def measure(name: str) -> list[str]:
    """The cells of a miner."""
    return [against_pml(name), *against_itself(name)]


def read(text: str) -> dict[str, list[str]]:
    """The rows of the page: miner -> cells."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows if row[0] != "miner"}


def main() -> None:
    lines = [HEAD, f"| miner | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in sorted(table.ALL):
        lines.append(f"| {name} | {' | '.join(measure(name))} |")
        print(lines[-1], flush=True)
    PATH.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
