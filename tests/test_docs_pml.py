"""The tables of docs/coming_from_pml.md and docs/coming_from_icml2020.md: their names exist, and so do ours."""

import ast
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from dml_jax import (
    distances,
    evaluation,
    losses,
    miners,
    reducers,
    regularizers,
    samplers,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ("coming_from_pml.md", "coming_from_icml2020.md")
# Made by tests/golden/make_pml_names.py.
PML = json.loads((ROOT / "tests" / "golden" / "pml_names.json").read_text())
SECTIONS = {
    "Losses": "losses",
    "Miners": "miners",
    "Samplers": "samplers",
    "Distances": "distances",
    "Reducers": "reducers",
    "Regularizers": "regularizers",
    "Evaluation": "testers",
    "Trainers": "trainers",
}
OURS = {
    "distances": distances,
    "evaluation": evaluation,
    "losses": losses,
    "miners": miners,
    "reducers": reducers,
    "regularizers": regularizers,
    "samplers": samplers,
}
CALL = re.compile(rf"`((?:{'|'.join(OURS)})\.\w+[^`]*)`")
# The number of images an epoch has by default is our own; a threshold without a bound is refused.
OTHER_DEFAULTS = {("samplers", "length_before_new_iter"), ("samplers", "m"), ("reducers", "low")}
# What PML's objects are given, and ours only where their variables are made.
SIZES = {"num_classes", "embedding_size", "descriptors_dim"}


def rows(page: str) -> list[tuple[str, str, str]]:
    """(section, left cell, right cell) of every row."""
    found, section = [], ""
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        cells = line.split(" | ")
        if line.startswith("| ") and len(cells) == 2 and not line.startswith(("| PML |", "| ICML")):
            found.append((section, cells[0][2:], cells[1].removesuffix(" |")))
    return found


def calls(cell: str) -> list[str]:
    return CALL.findall(cell)


def namespace() -> dict[str, object]:
    x = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    return {
        **OURS,
        "embeddings": x,
        "labels": np.arange(12) % 3,
        "key": jax.random.key(0),
        "kernel": pull,
    }


def pull(sims, pos, neg):
    return sims, pos


@pytest.mark.parametrize("page", PAGES)
def test_every_call_of_ours_works(page):
    found = [call for _, _, right in rows(page) for call in calls(right)]
    assert len(found) > 30
    for call in found:
        names = namespace()
        try:
            eval(call, names)
        except SyntaxError:
            exec(call, names)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_class_of_pml_is_there_and_no_other(section):
    left = " ".join(cell for where, cell, _ in rows("coming_from_pml.md") if where == section)
    named = set(re.findall(r"`([A-Z]\w+)", left))
    # The table of the evaluation also names what PML has beside its testers.
    beside = {
        "testers": {"AccuracyCalculator", "InferenceModel", "AMI", "NMI"},
        "trainers": {"DistributedLossWrapper", "DistributedMinerWrapper"},
    }
    kind = SECTIONS[section]
    assert named - beside.get(kind, set()) == set(PML[kind])


def of_two_calls() -> list[tuple[str, str, str]]:
    """(kind, PML's call, ours) where a row is one call of each."""
    found = []
    for section, left, right in rows("coming_from_pml.md"):
        kind = SECTIONS.get(section, "")
        theirs = re.match(r"`([A-Z]\w+\([^`]*\))`", left)
        if kind in OURS and theirs and right.startswith(f"`{kind}."):
            found.append((kind, theirs[1], calls(right)[0]))
    return found


@pytest.mark.parametrize(("kind", "theirs", "ours"), of_two_calls())
def test_defaults_are_those_of_pml(kind, theirs, ours):
    call = ast.parse(theirs, mode="eval").body
    assert isinstance(call, ast.Call)
    expected = PML[kind][call.func.id]
    written = {a.id: "required" for a in call.args}
    written |= {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    for name, value in written.items():
        # What a parent class takes is not in the class's own signature.
        if name in expected:
            assert expected[name] == value, name
    assert {n for n, v in expected.items() if v == "required"} <= set(written)
    # Ours with all of it written out is ours as it is.
    call = ast.parse(ours, mode="eval").body
    required = {n for n, v in expected.items() if v == "required"}
    if required <= SIZES and not any((kind, n) in OTHER_DEFAULTS for n in written):
        spelt_out, bare = eval(ours, namespace()), eval(f"{ast.unparse(call.func)}()", namespace())
        assert spelt_out == bare
