"""Which cases a run takes. DML_JAX_TESTS_CASES says it:

some     a quarter of the laws over every loss and miner, other ones in every run (`make test`)
laws     all of the laws (continuous integration, and pytest itself)
all      and every figure of the documents, which takes hours (`make conformance`)
"""

import os
import random
import zlib

CASES = os.environ.get("DML_JAX_TESTS_CASES", "laws")
if CASES not in ("some", "laws", "all"):
    raise ValueError(f"DML_JAX_TESTS_CASES={CASES!r}; some, laws or all is accepted")
ALL = CASES == "all"
# One seed for all processes of a run, which must collect the same tests.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(random.SystemRandom().random())
SEED = int(os.environ.get("DML_JAX_TESTS_SEED", zlib.crc32(_RUN.encode())))
# Where most of the time goes: a case of a law is one loss or miner in one of its programs.
DRAWN = (
    "tests/losses/",
    "tests/miners/",
    "tests/test_regularizers.py",
    "tests/test_reducers.py",
    "tests/models/",
)


def some(cases, count, what):
    """`count` of the cases, drawn by the seed and by what they are; all where DML_JAX_TESTS_CASES is "all"."""
    cases = list(cases)
    return cases if ALL else random.Random(f"{SEED} {what}").sample(cases, count)


def turn(case, turns):
    """Which of so many ways a case takes in this run, 0 to turns - 1."""
    return zlib.crc32(f"{SEED} {case}".encode()) % turns


def left_out(item):
    """True for a test that this run leaves out; all laws of a loss are drawn together and share its programs."""
    if CASES != "some" or not item.nodeid.startswith(DRAWN) or not hasattr(item, "callspec"):
        return False
    return turn(item.callspec.params.get("name", item.callspec.id), 4) > 0


def tell():
    """Says which seed drew the cases; pytest shows it where a test fails."""
    print(f"drawn with DML_JAX_TESTS_SEED={SEED}")
