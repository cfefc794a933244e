"""docs/extending.md: its files are written and its commands run, literally."""

import re
import shlex

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.commands import ROOT, CommandServer

PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.M | re.S)
BLOCKS = BLOCK.findall(PAGE.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("extending")
    (path / "configs").mkdir()
    for language, title, text in BLOCKS:
        if title:
            assert language == "python"
            (path / title).write_text(text)
    return path


def test_every_file_is_about_ten_lines():
    files = {t: text for _, t, text in BLOCKS if t and not t.startswith("configs/")}
    assert len(files) == 7
    for title, text in files.items():
        lines = [line for line in text.splitlines() if line and "import" not in line]
        assert len(lines) <= 16, title


def test_snippets(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    rng = np.random.default_rng(0)
    names = {
        "embeddings": jnp.asarray(rng.normal(size=(12, 6)), "float32"),
        "labels": jnp.arange(12) % 3,
    }
    snippets = [text for language, title, text in BLOCKS if language == "python" and not title]
    assert snippets
    for text in snippets:
        exec(compile(text, str(PAGE), "exec"), names)
    np.testing.assert_allclose(names["mean"].compute(), names["value"], rtol=1e-6)
    assert names["value"] > 0


def test_commands(folder):
    outputs = []
    with CommandServer() as server:
        for text in (text for language, _, text in BLOCKS if language == "sh"):
            for line in text.splitlines():
                words = shlex.split(line)
                assert words[0] == "dml"
                status, out, err = server.run([f"dml_jax.{words[1]}", *words[2:]], folder)
                assert status == 0, f"{line}\n{out}\n{err}"
                outputs.append(out)
    assert len(outputs) == 2
    assert "mean_recall" in outputs[1]
