"""Which devices an evaluation runs over."""

import jax
from jax.sharding import Mesh


def data_mesh() -> Mesh | None:
    """The mesh in context (`jax.set_mesh`) where it has a `data` axis, else None."""
    if "data" not in jax.sharding.get_abstract_mesh().axis_names:
        return None
    mesh = jax.sharding.get_mesh()
    return mesh if isinstance(mesh, Mesh) else None
