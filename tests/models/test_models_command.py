"""The list of models, `python -m dml_jax.models`."""

import subprocess
import sys

import pytest

from dml_jax import UserError, models
from dml_jax.models import __main__ as listing


def test_rows_come_one_by_one(monkeypatch):
    """The header, and each row before the next model is made."""
    made = []
    get = models.get
    monkeypatch.setattr(
        models, "get", lambda name, **hyper: made.append(name) or get(name, **hyper)
    )
    rows = listing.rows("resnet")
    header = next(rows)
    assert header[1:] == listing.HEADER[1:] and not made
    first = next(rows)
    assert made == ["resnet"] and len(first[0]) == len(header[0])
    assert first[1].replace(",", "").isdecimal() and first[-2].startswith("https://")
    with pytest.raises(UserError, match="did you mean 'resnet'"):
        next(listing.rows("resnte"))


def test_the_columns_are_under_each_other():
    command = [sys.executable, "-m", "dml_jax.models", "convnet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    header, row = done.stdout.splitlines()
    assert row.index("296,384") == header.index("parameters")
    assert row.index("32 x 32 x 1") == header.index("image")
