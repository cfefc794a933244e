"""References that stay on their devices: each device keeps its own rows of them, and the anchors go to all devices.

Otherwise the references are replicated: one gather for the whole batch, after which every device holds all of them.
Here a device holds 1 / devices of their vectors. For a block of anchors the devices gather the blocks of all of them,
compare these with their own rows, and exchange the similarities. With a anchors in a block, n references and d
dimensions a device receives a (devices d + n) numbers for each block; of references that go around in a ring it would
be n d, which is more where a block has fewer anchors than the vectors have dimensions.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import jax
from jaxtyping import Array, Float

from dml_jax import mesh
from dml_jax.errors import UserError
from dml_jax.parameters import check

Layout = Literal["replicated", "sharded"]
_layout: ContextVar[Layout] = ContextVar("layout", default="replicated")


@contextlib.contextmanager
def references(layout: Layout) -> Iterator[None]:
    """Says how references lie on the devices, for what is traced inside.

    Args:
      layout: "replicated" or "sharded".

    Raises:
      UserError: another text.
    """
    token = _layout.set(check("references", Layout, layout))
    try:
        yield
    finally:
        _layout.reset(token)


def is_used() -> bool:
    """Returns True where references stay on their devices: where it was asked for, and there are several."""
    return _layout.get() == "sharded" and mesh.data_devices() > 1


def refuse(reason: str) -> None:
    """Raises `UserError` where references stay on their devices.

    Args:
      reason: why they cannot: a sentence.
    """
    if is_used():
        raise UserError(f"{reason} with references='sharded'; references='replicated' is accepted")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sharded:
    """The vectors of all references, of which this device holds some rows. Who reads them is told so.

    Attributes:
      rows: those of this device, `[share, d]`.
      total: how many references there are, without padding.
    """

    rows: Float[Array, "share d"]
    total: int = field(metadata={"static": True})

    def _refused(self, *_: Any, **__: Any) -> NoReturn:
        raise UserError(
            "the loss or its miner reads the vectors of all references, which no device has with "
            "references='sharded'; references='replicated' is accepted"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refused()

    __add__ = __sub__ = __mul__ = __rmul__ = __radd__ = __rsub__ = __getitem__ = __array__ = (
        _refused
    )
    __jax_array__ = _refused


def kept(refs: Float[Array, "n d"]) -> Any:
    """Returns references as `blocks.map_anchors` takes them: sharded where that was asked for, else as they are.

    Args:
      refs: vectors of all references, outside of the `shard_map`.
    """
    return Sharded(refs, refs.shape[0]) if is_used() else refs


def is_sharded(x: Any) -> bool:
    """Returns True for references that stay on their devices."""
    return isinstance(x, Sharded)


def matrix(
    distance: Callable[[Array, Array], Array], anchors: Float[Array, "a d"], refs: Any
) -> Float[Array, "a n"]:
    """Returns `distance(anchors, refs)` on every device, wherever the references lie.

    Args:
      distance: of anchors and references, pair by pair.
      anchors: a block of this device's anchors; all devices have blocks of one size.
      refs: what `kept` returned, `[n, d]`.
    """
    if not isinstance(refs, Sharded):
        return distance(anchors, refs)
    axes = mesh.batch_axes()
    own_columns = distance(jax.lax.all_gather(anchors, axes, tiled=True), refs.rows)
    own_rows = jax.lax.all_to_all(own_columns, axes, split_axis=0, concat_axis=1, tiled=True)
    return own_rows[:, : refs.total]
