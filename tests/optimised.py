"""Programs compiled as users' programs are.

The tests' own programs are compiled in a hurry (`QUICK`, set by tests/conftest.py). That takes a quarter of the time,
and the numbers are not the same to the last bit. Laws that `jit` of this module compiles hold for what users run.
"""

QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_llvm_disable_expensive_passes": True,
}
# What XLA does where it is told nothing: test_optimised.py compares with a process that has no flags.
DEFAULTS = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
    "xla_llvm_disable_expensive_passes": False,
}


def jit(function, **how):
    """`jax.jit`, compiled as users' programs are."""
    import jax  # not before tests/conftest.py has said how

    return jax.jit(function, compiler_options=DEFAULTS, **how)
