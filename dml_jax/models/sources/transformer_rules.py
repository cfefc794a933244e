"""Rules that the tables of vision transformers share."""

from dml_jax.models.published import LINEAR, PATCHES, ROW, Layout, Rule

Names = str | tuple[str, ...]

# A row that the file has as a vector.
AS_ROW = Layout(ROW.save, ROW.load)
# What checkpoints of self-supervised pre-training have beside the backbone.
PRETRAINING = {r"(head|dino_head|ibot_head)\..*": "is a head of pre-training"}
OURS = "block_{:02}"


def linear(theirs: Names, ours: str) -> tuple[Rule, Rule]:
    """Returns the rules of weight and bias of a linear map, or of several that we have side by side.

    Args:
      theirs: the module's name in the file, or the names; one that ends in `_` is followed by no dot (`in_proj_weight`
        of torch.nn.MultiheadAttention).
      ours: our path.

    Example:
      >>> linear(("q", "k"), "qk")[1]
      Rule(theirs=('q.bias', 'k.bias'), ours='qk/bias', layout=...
    """
    weight, bias = _member(theirs, "weight"), _member(theirs, "bias")
    return Rule(weight, f"{ours}/kernel", LINEAR), Rule(bias, f"{ours}/bias")


def norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """Returns the rules of scale and bias of a layer norm.

    Args:
      theirs: the module's name in the file.
      ours: our path.
    """
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def patches(theirs: str) -> tuple[Rule, Rule]:
    """Returns the rules of the map of the patches.

    Args:
      theirs: the module's name in the file.
    """
    return Rule(f"{theirs}.weight", "patch/kernel", PATCHES), Rule(f"{theirs}.bias", "patch/bias")


def layer(
    theirs: str,
    *,
    norms: tuple[str, str],
    qkv: Names,
    out: str,
    mlp: tuple[Names, str],
    scales: tuple[str, str] | None = None,
    qkv_bias: Rule | None = None,
    ours: str = OURS,
) -> tuple[Rule, ...]:
    """Returns the rules of a layer (`backbones.transformer.Block`).

    Args:
      theirs: what the names of its arrays begin with in the file, with `{}` for its number and a dot at the end.
      norms: the names after that, of the two layer norms.
      qkv: likewise, of the map to queries, keys and values, or of the three.
      out: of the map behind the attention.
      mlp: of the two maps of the MLP, the first of which may be two, of gate and value.
      scales: of the two learned scales; None where there are none.
      qkv_bias: the rule of the bias of `qkv`, where it lies elsewhere than with the weight.
      ours: what our paths begin with.
    """

    def full(names: Names) -> Names:
        return theirs + names if isinstance(names, str) else tuple(theirs + n for n in names)

    weight, bias = linear(full(qkv), f"{ours}/qkv")
    rules = [
        *norm(theirs + norms[0], f"{ours}/norm1"),
        *norm(theirs + norms[1], f"{ours}/norm2"),
        weight,
        qkv_bias or bias,
        *linear(theirs + out, f"{ours}/out"),
        *linear(full(mlp[0]), f"{ours}/mlp_in"),
        *linear(theirs + mlp[1], f"{ours}/mlp_out"),
    ]
    for i, name in enumerate(scales or (), 1):
        rules.append(Rule(theirs + name, f"{ours}/scale{i}"))
    return tuple(rules)


def _member(names: Names, member: str) -> Names:
    if isinstance(names, str):
        return names + member if names.endswith("_") else f"{names}.{member}"
    return tuple(f"{name}.{member}" for name in names)
