"""The backbones, a module each; `dml_jax.models` exports their factories."""
