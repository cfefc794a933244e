"""The data sets, a module each; `dml_jax.data` exports their factories."""
