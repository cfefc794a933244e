"""The wheel works alone: configurations, the page's template and the command are in it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What an installed library is asked for, in an empty folder.
PROGRAM = """
import json, sys
import dml_jax
from dml_jax import __main__, config_files
from dml_jax.report import page
config = config_files.load("omniglot_cos_face:runlocal")
print(json.dumps([dml_jax.__file__, config.data.name, config_files.available(), page.TEMPLATE.is_file()]))
"""


def test_wheel(tmp_path):
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("dml_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-W", "ignore", "-c", build, str(tmp_path)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    wheel = tmp_path / done.stdout.split()[-1]
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        entries = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "dml = dml_jax.__main__:main" in archive.read(entries).decode()
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, data, configs, template = json.loads(done.stdout)
    assert file.startswith(str(installed)) and template
    assert data == "omniglot"
    assert configs == sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "common")
