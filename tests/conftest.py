"""Eight virtual CPU devices, strict ranks and one compilation cache for all tests."""

import importlib
import os
import pathlib
import sys
import textwrap

from tests import draws
from tests.optimised import QUICK

CACHE = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "xla"
MAPS = pathlib.Path("/proc/self/maps")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the tests' time, and these flags leave a quarter of it. tests/optimised.py compiles without.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        *(f"--{name}={value}" for name, value in QUICK.items()),
    ]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# grain's worker processes read absl flags, which only an absl main would have parsed.
flags.FLAGS.mark_as_parsed()


def pytest_report_header():
    return f"cases: {draws.CASES} (tests/draws.py), DML_JAX_TESTS_SEED={draws.SEED}"


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if draws.left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not draws.left_out(item)]


@pytest.fixture
def x64():
    """float64 on for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def documented_module(monkeypatch, tmp_path_factory):
    """Writes the code in a docstring to a module my_package.my_module, and imports it."""

    def make(docstring):
        folder = tmp_path_factory.mktemp("own")
        lines = docstring.splitlines()
        code = "\n".join(line for line in lines if not line or line.startswith("    "))
        (folder / "my_package").mkdir()
        (folder / "my_package" / "my_module.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(folder)
        return importlib.import_module("my_package.my_module")

    yield make
    for name in ("my_package", "my_package.my_module"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def room_for_programs(request):
    """Drops compiled programs where they are too many: each maps memory, of which a process has 65530 pieces."""
    yield
    request.config.tests_run = getattr(request.config, "tests_run", 0) + 1
    look = request.config.tests_run % 20 == 0 and MAPS.exists()
    if look and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
