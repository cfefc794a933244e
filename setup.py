"""The packages of the wheel; everything else is said in pyproject.toml."""

from setuptools import find_packages, setup

# The configurations of the folder configs/ lie in the package where it is installed, and are found there by name.
setup(
    packages=[*find_packages(include=["dml_jax*"]), "dml_jax.configs", "dml_jax.configs.studies"],
    package_dir={"dml_jax.configs": "configs"},
)
