"""What exists only so that the numbers of the ICML 2020 code come out (Roth et al., "Revisiting Training Strategies").

Its modules are imported by the tables that list them (`dml_jax.losses`, `dml_jax.miners`, `dml_jax.samplers`), under
whose names they are used.
"""

# The tables of losses, miners and samplers list what is in this package, which is made of theirs: the losses have to be
# imported before any module of it, whichever is asked for first.
import dml_jax.losses  # noqa: F401
