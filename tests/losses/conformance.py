"""Writes docs/conformance.md: how far each loss is from its references and from itself.

    python -m tests.losses.conformance [NAME ...] [--jobs 2] [--columns "2 devices" ...] [--missing]

measures the rows of the named losses (all without names) and puts them into the file, whose other figures stay. NAME
is a row's loss, or "loss+miner"; `*` stands for anything. `--missing`: only what the file has no figure for. The file
is written after every row, so that a run may be stopped.
"""

# First of all: eight virtual devices and the compilation cache of the tests.
import tests.conftest  # noqa: F401

# isort: split
import argparse
import concurrent.futures
import fcntl
import functools
import inspect
import multiprocessing
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dml_jax import losses
from dml_jax.mesh import make_mesh
from dml_jax.training import state
from dml_jax.training.step import make_train_step
from tests.losses import table, test_golden, test_laws, test_revisiting, test_wrappers
from tests.training import standins

PATH = pathlib.Path(__file__).parents[2] / "docs" / "conformance.md"
Case = tuple[str, str | None]
Rows = dict[Case, dict[str, str]]
# One of each kind of selection: pairs, listed triplets, intervals of triplets.
KINDS = ("multi_similarity", "batch_hard", "triplet_margin")
# So large that a step is large beside the parameters, whose rounding would show in the difference.
RATE = 1e4


def takes_miner(name: str) -> bool:
    """Whether a row of the table goes with a miner."""
    family = name.partition("/")[0]
    return family != "multiple" and "miner" in inspect.signature(losses.LOSSES[family]).parameters


def key_of(name: str, miner: str | None) -> str:
    return name if miner is None else f"{name}+{miner}"


CASES: list[Case] = [
    (name, miner)
    for name in sorted([*table.LOSSES, *table.APART])
    for miner in (None, *(KINDS if takes_miner(name) else ()))
]


def difference(got, want) -> float:
    """The largest error of any leaf, relative to that leaf's largest entry."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    worst = 0.0
    for g, w in pairs:
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        worst = max(worst, np.abs(g - w).max() / max(np.abs(w).max(), 1e-3))
    return worst


def against_pml(name: str, miner: str | None) -> float:
    """Against the golden values, in float64."""
    key = f"{name}/{miner or ('refs' if name in table.VIEWS else 'none')}"
    with jax.enable_x64(True):
        if name == "cross_batch_memory":
            case = "/".join(filter(None, ("triplet_margin", miner)))
            return test_wrappers.difference(
                test_wrappers.through_memory(case)[:2], f"memory/{case}"
            )
        if name == "multiple":
            return test_wrappers.difference(test_wrappers.of_several(), "multiple")
        if name == "self_supervised":
            case = "nt_xent/symmetric"
            return test_wrappers.difference(test_wrappers.of_views(case), f"views/{case}")
        got = test_golden.evaluate(key)
        parts = ["value", "gradient"] + ["weights"] * (f"loss/{key}/weights" in test_golden.GOLDEN)
        return max(float(test_golden.error(got, key, part)) for part in parts)


def against_icml(name: str, miner: str | None) -> float:
    """The largest error over the variants of the loss that are recorded; with a miner, over those with it."""
    family = f"{name.partition('/')[0]}/"
    every = miner is None and family.startswith("revisiting_")
    ending = "" if every else f"/{miner or 'none'}"
    keys = test_revisiting.KEYS
    return max(of_icml(k) for k in keys if k.startswith(family) and k.endswith(ending))


def of_icml(key: str) -> float:
    drawn = test_revisiting.drawn(key)
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        if drawn is not None:
            test_revisiting.give(patch, drawn)
        worst = float(test_revisiting.largest_error(key))
    if drawn is not None:
        jax.clear_caches()  # of programs with these draws
    return worst


@functools.cache
def dense(name: str, miner: str | None):
    """On one device, all at once."""
    return test_laws.evaluate(name, test_laws.batch(), miner=miner)


def in_blocks(name: str, miner: str | None) -> float:
    got = test_laws.evaluate(name, test_laws.batch(), miner=miner, block=5)
    return difference(got, dense(name, miner))


def on_devices(name: str, miner: str | None, *, devices: int) -> float:
    with jax.set_mesh(test_laws.mesh(devices)):
        got = test_laws.evaluate(name, test_laws.batch(), miner=miner)
    return difference(got, dense(name, miner))


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
        tx, mesh = optax.sgd(RATE), make_mesh(1)
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


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
      target: the largest figure that will do.
      measure: (name, miner) -> the figure.
      about: what it is, for the page.
      without: patterns of rows ("loss", "loss+miner"), and why they have no figure.
      only: patterns of the rows that may have one; `otherwise` is why all others have none.
    """

    target: float
    measure: Callable[[str, str | None], float]
    about: str
    without: dict[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ("*",)
    otherwise: str = ""

    @property
    def rounding(self) -> float:
        """What rounding alone may make of a figure, in float64 or in float32."""
        return 1e-13 if self.target < 1e-8 else 1e-6

    def reason(self, name: str, miner: str | None) -> str | None:
        """Why a row has no figure here; None where it has one."""
        key = key_of(name, miner)
        if not any(fnmatchcase(key, rows) for rows in self.only):
            return self.otherwise
        return next((why for rows, why in self.without.items() if fnmatchcase(key, rows)), None)


WITHOUT_MINER = (
    "angular",
    "arc_face",
    "generalized",
    "histogram",
    "multi_similarity",
    "n_pair",
    "proxy_nca",
    "soft_triple",
    "softmax",
)
UNMINED = "recorded over all triplets and each anchor's hardest"
MINED = ("", "+batch_hard")
NO_MINER = "PML's takes no miner"
NONE = "PML has no such loss"
COLUMNS = {
    "PML 2.9": Column(
        1e-10,
        against_pml,
        "against PyTorch Metric Learning in float64 (`tests/golden/make_losses.py`, and of losses made of losses "
        "what `tests/losses/test_wrappers.py` compares)",
        {
            "generic_pair*": "the kernel is the user's own",
            "happier*": NONE,
            "multi_similarity/overlap*": "PML has no such labels",
            "proxy_nca_pp*": NONE,
            "recall_at_k*": NONE,
            "roadmap*": NONE,
            "sigmoid*": NONE,
            "revisiting_*": "PML has another function",
            "histogram+*": "PML counts a pair once that a miner chose from both ends, here it counts twice",
            "instance+*": NO_MINER,
            "n_pairs+multi_similarity": "of several positives PML takes the first that the miner listed, here the "
            "first of the batch",
            "p2s_grad+*": NO_MINER,
            "pnp+*": NO_MINER,
            "ranked_list+*": NO_MINER,
            "self_supervised+*": NO_MINER,
        },
    ),
    "ICML 2020": Column(
        1e-10,
        against_icml,
        "against the criteria of Roth et al., ICML 2020, in float64 (`tests/golden/make_revisiting.py`): what was "
        "meant, with a line of the code corrected where needed, and the code as it is (`parity`), the worse of both. "
        "`contrastive` and `triplet_margin` in that system's configuration (the mean of all; 1e-6 in the differences; "
        "squared distances and margin 0.2), over all triplets or each anchor's hardest",
        {
            **{f"revisiting_{name}*+*": "there it takes no miner" for name in WITHOUT_MINER},
            "revisiting_*+multi_similarity": UNMINED,
            "revisiting_*+triplet_margin": UNMINED,
        },
        ("revisiting_*", *(f"{n}{m}" for n in ("contrastive", "triplet_margin") for m in MINED)),
        "that system has no such loss, or computes another function, which is `revisiting_*`, or has no such miner",
    ),
    "blocks": Column(
        1e-5,
        in_blocks,
        "blocks of 5 anchors against all at once, in float32",
        {"manifold": "the inverse of the whole graph has no form in blocks, which are refused"},
    ),
    **{
        f"{n} devices": Column(
            1e-5, functools.partial(on_devices, devices=n), "against one device, in float32"
        )
        for n in (2, 4, 8)
    },
    "micro-batches": Column(
        1e-5,
        micro_batched,
        "the parameters of a small network after one step of SGD, in micro-batches of 11 against the whole batch of "
        "22, in float32",
    ),
    "bfloat16": Column(
        0.1,
        rounded,
        "embeddings rounded to bfloat16 against the same embeddings in float64. This is the rounding of the input "
        "(2^-9), as the loss magnifies it; the loss itself is computed in float32",
    ),
}
HEAD = """# How exact the losses are

Made by `python -m tests.losses.conformance`; `tests/losses/test_conformance.py` checks the targets. Each figure is
the largest error of the value and of all gradients, relative to the largest entry of each, on an unbalanced batch with
singletons. Every loss is there without a miner and with one of each kind: pairs (`multi_similarity`), listed triplets
(`batch_hard`), triplets by an interval of distances (`triplet_margin`). `manifold`, `multiple`, `vic_reg` and
`revisiting_adversarial_separation` take none.

"""


def read(text: str) -> Rows:
    """The figures of a page, by row and column."""
    found: Rows = {}
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| loss |"):
            columns = cells[2:]
        elif columns and line.startswith("| "):
            found[cells[0], cells[1] or None] = dict(zip(columns, cells[2:], strict=True))
    return found


def shown(pattern: str) -> str:
    """How the page names the rows of a pattern."""
    name, _, miner = pattern.partition("+")
    if miner:
        return f"`{name}` with " + ("a miner" if miner == "*" else f"`{miner}`")
    return f"`{name.removesuffix('*')}`" + " (also with a miner)" * name.endswith("*")


def page(rows: Rows) -> str:
    """The page of these figures: its head, what the columns are and what has no figure, the table."""
    lines = [f"- **{name}**: {c.about}. Target {c.target:g}." for name, c in COLUMNS.items()]
    lines += ["", "Rows without a figure (-):", ""]
    for name, column in COLUMNS.items():
        for why in dict.fromkeys(column.without.values()):
            which = ", ".join(
                shown(rows) for rows, reason in column.without.items() if reason == why
            )
            lines.append(f"- {name}, {which}: {why}.")
        if column.otherwise:
            which = ", ".join(map(shown, column.only))
            lines.append(f"- {name}, all others than {which}: {column.otherwise}.")
    lines += [
        "",
        f"| loss | miner | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---:|' * len(COLUMNS)}",
    ]
    for name, miner in CASES:
        if row := rows.get((name, miner)):
            cells = [row.get(c, "") for c in COLUMNS]
            lines.append(f"| {name} | {miner or ''} | {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def measure(case: Case, columns: Sequence[str]) -> dict[str, str]:
    """Figures of a row. Programs are kept within it: each maps memory, of which a process has 65530 pieces."""
    row = {}
    for name in columns:
        column = COLUMNS[name]
        row[name] = "-" if column.reason(*case) else f"{column.measure(*case):.1e}"
    test_laws.graded.cache_clear()
    dense.cache_clear()
    jax.clear_caches()
    return row


def store(measured: Rows) -> None:
    """Puts figures into the page, which other runs may be writing to."""
    with PATH.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rows = read(file.read())
        for case, figures in measured.items():
            rows[case] = rows.get(case, {}) | figures
        file.seek(0)
        file.truncate()
        file.write(page(rows))


def agree(column: str, page: str, fresh: str) -> bool:
    """Whether a figure of the page is of the size of a fresh one; rounding differs from machine to machine."""
    if "-" in (page, fresh):
        return page == fresh
    low, high = sorted((float(page), float(fresh)))
    return high <= 10 * low + COLUMNS[column].rounding


def settled(figure: str | None, reason: str | None) -> bool:
    """Whether a cell holds what it should: a dash where there is a reason for it, a figure elsewhere."""
    return bool(figure) and (figure == "-") == (reason is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["*"])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--columns", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--missing", action="store_true")
    args = parser.parse_args()
    rows = read(PATH.read_text())
    work = {}
    for case in CASES:
        keys, have = {case[0], key_of(*case)}, rows.get(case, {}) if args.missing else {}
        due = [c for c in args.columns if not settled(have.get(c), COLUMNS[c].reason(*case))]
        if due and any(fnmatchcase(key, pattern) for key in keys for pattern in args.names):
            work[case] = due
    failed = {}
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.jobs, mp_context=fresh) as pool:
        futures = {pool.submit(measure, case, columns): case for case, columns in work.items()}
        for future in concurrent.futures.as_completed(futures):
            case = futures[future]
            if error := future.exception():
                failed[key_of(*case)] = error
                print(key_of(*case), repr(error), flush=True)
                continue
            print(key_of(*case), future.result(), flush=True)
            store({case: future.result()})
    store({})
    if failed:
        raise SystemExit(f"no figures for {', '.join(failed)}")


if __name__ == "__main__":
    main()
