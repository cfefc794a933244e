"""docs/losses.md has every loss, and says of it what the code says."""

import inspect
import pathlib
import re

import jax
import pytest

from dml_jax import distances, losses, reducers

PATH = pathlib.Path(__file__).parents[2] / "docs" / "losses.md"
COLUMNS = ("loss", "formula", "paper", "defaults", "distance", "reducer", "cost", "needs")
# What a loss that needs a value or a loss is made with here.
GIVEN = {
    "ranked_list": dict(margin=0.4, Tn=10.0),
    "cross_batch_memory": dict(loss="contrastive"),
    "multiple": dict(losses=["contrastive"]),
    "partial_fc": dict(loss="cos_face"),
    "self_supervised": dict(loss="contrastive"),
    "generic_pair": dict(
        rows=losses.contrastive_rows, pos_margin=0.0, neg_margin=1.0, similarity=False
    ),
}
WRAPPERS = ("cross_batch_memory", "multiple", "partial_fc", "self_supervised")
PARTS = ("miner", "distance", "reducer", "regularizer", "relation")


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


def signature(name):
    """What the factory takes beside the parts of every loss, with the defaults."""
    found = inspect.signature(losses.LOSSES[name]).parameters.values()
    return {p.name: p.default for p in found if p.name not in PARTS and p.kind is not p.VAR_KEYWORD}


def part_of(kind, made):
    """How the table writes a distance or a reducer: its name, and what differs from that name's defaults."""
    if made.name == "multiple":
        inner = next(n for n in ("mean", "sum", "avg_non_zero") if reducers.get(n).low == made.low)
        terms = {term: reducer.name for term, reducer in made.terms}
        return ", ".join([f"`{made.name}`", listed({"default": inner} | terms)])
    spec = {}
    if kind == "distance":
        usual = distances.get(made.name).matrix.keywords
        spec = {k: v for k, v in made.matrix.keywords.items() if v != usual[k]}
    return ", ".join(filter(None, [f"`{made.name}`", listed(spec)]))


def facts(name):
    """The cells that the code decides."""
    loss, accepted = make(name), inspect.signature(losses.LOSSES[name]).parameters
    built = {
        part: part_of(part, getattr(loss, part)) if part in accepted else "-"
        for part in ("distance", "reducer")
    }
    return {"defaults": split(listed(signature(name)))} | built


def make(name):
    return losses.get(name, **GIVEN.get(name, {}))


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
    needs, loss = ROWS[name]["needs"], make(name)
    made = loss.init(jax.random.key(0), 3, 4)
    own = losses.has_class_weights(loss)
    assert ("Class weights" in needs) == own
    assert not own or "weights" in made["params"]
    assert ("keeps a state" in needs) == ("state" in made)
    assert ("learns" in needs) == (bool(made.get("params")) and not own)
    if name in (*WRAPPERS, "generic_pair"):
        return
    takes_miner = "miner" in inspect.signature(losses.LOSSES[name]).parameters
    assert ("No miner" in needs) != takes_miner
    assert ("No labels" in needs or "no labels" in needs) == (not loss.reads_labels)
    refused = not loss.takes_references and not own
    assert ("References: none" in needs) == (refused or name == "manifold")
    assert ("the second view" in needs) == isinstance(loss, losses.ViewsLoss)
    penalties = [f"Regularizer `{r.name}`, weight {r.weight:g}" for r in loss.regularizers]
    assert all(penalty in needs for penalty in penalties)
    assert ("Regularizer" in needs) == bool(penalties)
    weighs = getattr(loss, "weighs_samples", False)
    assert ("weighs the anchors" in needs) == weighs
    assert ("weighs the samples" in needs) == (own and takes_miner)


def test_a_wrong_table_fails():
    line = next(x for x in PATH.read_text().splitlines() if x.startswith("| `nt_xent`"))
    changed = read(line.replace("temperature=0.07", "temperature=0.1"))["nt_xent"]
    assert split(changed["defaults"]) != facts("nt_xent")["defaults"]
    with pytest.raises(ValueError, match="twice"):
        read(f"{line}\n{line}")
    assert not re.search(r"`nt_xent`", PATH.read_text().replace(line, ""))
