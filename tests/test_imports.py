"""Any module may be the first that is imported: tables list what is in packages that are made of them."""

import subprocess
import sys

from tests import draws

# A child for every module, of one parent that has imported what takes long. Each ends before Python's own clean-up.
SCRIPT = """
import importlib, os, pkgutil, sys, traceback
import jax, numpy, optax
import dml_jax
kinds = ("losses", "miners", "samplers", "revisiting")
names = [f"dml_jax.{kind}" for kind in kinds]
for kind in kinds:
    folder = os.path.join(dml_jax.__path__[0], kind)
    names += [f"dml_jax.{kind}.{module.name}" for module in pkgutil.iter_modules([folder])]
failed = []
first, step = map(int, sys.argv[1:])
for name in names[first::step]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(len(names))
sys.exit(f"cannot be imported first: {failed}" if failed else 0)
"""


def test_any_module_can_be_imported_first():
    draws.tell()
    some = [draws.turn("imports", 4), 4] if draws.CASES == "some" else [0, 1]
    command = [sys.executable, "-c", SCRIPT, *map(str, some)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30
