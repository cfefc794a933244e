"""docs/losses.md has every loss, and says of it what the code says."""

import inspect
import pathlib
import re

import jax
import pytest

from dml_jax import losses
from dml_jax.losses import registry
from dml_jax.losses.own import ViewsLoss

PATH = pathlib.Path(__file__).parents[2] / "docs" / "losses.md"
COLUMNS = ("loss", "formula", "paper", "defaults", "distance", "reducer", "cost", "needs")
# What a loss that needs a value or a loss is made with here.
GIVEN = {
    "ranked_list": dict(margin=0.4, Tn=10.0),
    "cross_batch_memory": dict(loss="contrastive"),
    "multiple": dict(losses=["contrastive"]),
    "self_supervised": dict(loss="contrastive"),
    "generic_pair": dict(rows=losses.contrastive_rows),
}


def read(text):
    """name -> its cells by column; ValueError for a row of another width or a name that comes twice."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            name = cells[0].strip("`")
            if len(cells) != len(COLUMNS) or name in rows:
                raise ValueError(f"not {len(COLUMNS)} cells, or twice: {line}")
            rows[name] = dict(zip(COLUMNS, cells, strict=True))
    return rows


ROWS = read(PATH.read_text())


def show(value):
    if value is inspect.Parameter.empty:
        return "required"
    return f"{value:g}" if isinstance(value, float) else str(value)


def listed(hyper):
    return ", ".join(f"`{name}={show(value)}`" for name, value in hyper.items())


def chosen(entry, part):
    """How the table writes the default distance or reducer of an entry: a dash where the loss takes none."""
    if part in entry.without:
        return "-"
    default = getattr(entry, part)
    spec = {"name": default} if isinstance(default, str) else dict(default)
    return ", ".join(filter(None, [f"`{spec.pop('name')}`", listed(spec)]))


def facts(name):
    """The cells that the code decides."""
    if name in registry.WRAPPERS:
        built = {"distance": "-", "reducer": "-"}
    elif name == registry.GENERIC:
        built = {"distance": "`lp`", "reducer": "`mean`"}
    else:
        entry = losses.LOSSES[name]
        built = {part: chosen(entry, part) for part in ("distance", "reducer")}
    return {"defaults": split(listed(losses.hyper_parameters(name)))} | built


def split(cell):
    """The set of `name=value` in a cell."""
    return set(re.findall("`[^`]*`", cell))


def test_every_loss_is_there():
    assert sorted(ROWS) == losses.available()


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_code_agrees(name):
    row, want = ROWS[name], facts(name)
    got = {"defaults": split(row["defaults"])} | {k: row[k] for k in ("distance", "reducer")}
    assert got == want
    assert row["formula"] and row["cost"]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_needs_are_the_code_s(name):
    """Class weights, a state, learned scalars, references and miners: said if and only if they are so."""
    needs, loss = ROWS[name]["needs"], losses.get(name, **GIVEN.get(name, {}))
    made = loss.init(jax.random.key(0), 3, 4)
    entry = losses.LOSSES.get(name)
    own = entry is not None and issubclass(entry.cls, losses.ClassLoss)
    assert ("Class weights" in needs) == own == ("weights" in made.get("params", {}))
    assert ("keeps a state" in needs) == ("state" in made)
    assert ("learns" in needs) == (bool(made.get("params")) and not own)
    if entry is not None:
        assert ("No miner" in needs) == ("miner" in entry.without)
        assert ("No labels" in needs or "no labels" in needs) == (not loss.reads_labels)
        refused = not loss.takes_references and not issubclass(entry.cls, losses.ClassLoss)
        assert ("References: none" in needs) == (refused or name == "manifold")
        assert ("the second view" in needs) == issubclass(entry.cls, ViewsLoss)
        penalties = [f"Regularizer `{r.name}`, weight {r.weight:g}" for r in loss.regularizers]
        assert all(penalty in needs for penalty in penalties)
        assert ("Regularizer" in needs) == bool(penalties)
        weighs = getattr(loss, "weighs_samples", False)
        assert ("weighs the anchors" in needs) == weighs
        assert ("weighs the samples" in needs) == (own and "miner" not in entry.without)


def test_a_wrong_table_fails():
    line = next(x for x in PATH.read_text().splitlines() if x.startswith("| `nt_xent`"))
    changed = read(line.replace("temperature=0.07", "temperature=0.1"))["nt_xent"]
    assert split(changed["defaults"]) != facts("nt_xent")["defaults"]
    with pytest.raises(ValueError, match="twice"):
        read(f"{line}\n{line}")
    assert not re.search(r"`nt_xent`", PATH.read_text().replace(line, ""))
