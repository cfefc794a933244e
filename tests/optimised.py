"""Programs compiled as users' programs are.

The tests' own programs are compiled in a hurry (`QUICK`, set by tests/conftest.py). That takes a quarter of the time,
and the numbers are not the same to the last bit. Laws that `jit` of this module compiles hold for what users run.
"""

from importlib.metadata import version

# A flag that later versions do not know, which ends a process.
EMITTERS = "xla_cpu_use_fusion_emitters"
HAS_EMITTERS = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12)

QUICK = {
    "xla_backend_optimization_level": 0,
    **({EMITTERS: False} if HAS_EMITTERS else {}),
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_llvm_disable_expensive_passes": True,
}
# What XLA does where it is told nothing: test_optimised.py compares with a process that has no flags.
DEFAULTS = {
    "xla_backend_optimization_level": 3,
    **({EMITTERS: True} if HAS_EMITTERS else {}),
    "xla_cpu_parallel_codegen_split_count": 32,
    "xla_llvm_disable_expensive_passes": False,
}


def jit(function, **how):
    """`jax.jit`, compiled as users' programs are."""
    import jax  # not before tests/conftest.py has said how

    return jax.jit(function, compiler_options=DEFAULTS, **how)
