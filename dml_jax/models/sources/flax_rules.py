"""Rules of the arrays of google-research's vision transformers, which are files of Flax."""

import numpy as np

from dml_jax.models.published import SAME, Layout, Rule
from dml_jax.models.sources.transformer_rules import OURS


def _pixels_back(array: np.ndarray) -> np.ndarray:
    side = round((array.shape[0] / 3) ** 0.5)
    return array.reshape(side, side, 3, -1)


# The patches' map is a convolution, [p, p, 3, out].
PIXELS = Layout(lambda a: a.reshape(-1, a.shape[-1]), _pixels_back)


def flax_norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """Returns the rules of scale and bias of a layer norm.

    Args:
      theirs: the module's path in the file.
      ours: our path.
    """
    return Rule(f"{theirs}/scale", f"{ours}/scale"), Rule(f"{theirs}/bias", f"{ours}/bias")


def flax_patches(theirs: str) -> tuple[Rule, Rule]:
    """Returns the rules of the map of the patches.

    Args:
      theirs: the module's path in the file.
    """
    return Rule(f"{theirs}/kernel", "patch/kernel", PIXELS), Rule(f"{theirs}/bias", "patch/bias")


def flax_attention(theirs: str, ours: str, heads: int) -> tuple[Rule, ...]:
    """Returns the rules of an attention, whose kernels are `[d, heads, d / heads]` in the file.

    Args:
      theirs: the module's path in the file.
      ours: what our paths begin with.
      heads: of the attention.
    """

    def load(array: np.ndarray) -> np.ndarray:
        d = array.shape[0] // 3
        return array.reshape(3, d, -1).swapaxes(0, 1).reshape(d, -1)

    def save(array: np.ndarray) -> np.ndarray:
        d = array.shape[0]
        return array.reshape(d, 3, -1).swapaxes(0, 1).reshape(3 * d, heads, -1)

    split = Layout(lambda a: a.reshape(-1), lambda a: a.reshape(3 * heads, -1))
    merged = Layout(
        lambda a: a.reshape(-1, a.shape[-1]), lambda a: a.reshape(heads, -1, a.shape[-1])
    )
    names = ("query", "key", "value")
    return (
        Rule(
            tuple(f"{theirs}/{x}/kernel" for x in names), f"{ours}/qkv/kernel", Layout(load, save)
        ),
        Rule(tuple(f"{theirs}/{x}/bias" for x in names), f"{ours}/qkv/bias", split),
        Rule(f"{theirs}/out/kernel", f"{ours}/out/kernel", merged),
        Rule(f"{theirs}/out/bias", f"{ours}/out/bias"),
    )


def flax_mlp(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Returns the rules of an MLP.

    Args:
      theirs: the module's path in the file.
      ours: what our paths begin with.
    """
    return tuple(
        Rule(f"{theirs}/Dense_{i}/{array}", f"{ours}/{name}/{array}", SAME)
        for i, name in enumerate(("mlp_in", "mlp_out"))
        for array in ("kernel", "bias")
    )


def flax_layer(
    theirs: str, modules: tuple[str, str, str, str], heads: int, ours: str = OURS
) -> tuple[Rule, ...]:
    """Returns the rules of a layer.

    Args:
      theirs: its path in the file, with `{}` for its number.
      modules: the names of its norm, attention, norm and MLP.
      heads: of the attention.
      ours: what our paths begin with.
    """
    norm1, attention, norm2, mlp = (f"{theirs}/{module}" for module in modules)
    return (
        *flax_norm(norm1, f"{ours}/norm1"),
        *flax_attention(attention, ours, heads),
        *flax_norm(norm2, f"{ours}/norm2"),
        *flax_mlp(mlp, ours),
    )
