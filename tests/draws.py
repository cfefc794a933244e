"""A few of many cases, others in every run; all of them for `make conformance`."""

import os
import random
import zlib

ALL = os.environ.get("DML_JAX_TESTS_CASES") == "all"
# One seed for all processes of a run, which must collect the same tests.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(random.SystemRandom().random())
SEED = int(os.environ.get("DML_JAX_TESTS_SEED", zlib.crc32(_RUN.encode())))


def some(cases, count, what):
    """`count` of the cases, drawn by the seed and by what they are; all where DML_JAX_TESTS_CASES is "all"."""
    cases = list(cases)
    return cases if ALL else random.Random(f"{SEED} {what}").sample(cases, count)


def tell():
    """Says which seed drew the cases; pytest shows it where a test fails."""
    print(f"drawn with DML_JAX_TESTS_SEED={SEED}")
