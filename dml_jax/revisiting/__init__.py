"""What exists only so that the numbers of the ICML 2020 code come out (Roth et al., "Revisiting Training Strategies").

Its modules are imported by the tables that list them (`dml_jax.losses`, `dml_jax.miners`, `dml_jax.samplers`), under
whose names they are used.
"""
