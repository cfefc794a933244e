"""Rules that the tables of convolutional networks share."""

from dml_jax.models.published import CONV, Layout, Rule

# Some files of BN-Inception have vectors as rows.
VECTOR = Layout(lambda a: a.reshape(a.shape[-1:]), lambda a: a)

COUNTER = {
    r".*num_batches_tracked": "counts steps, which a running mean with a fixed momentum does not need"
}


def conv(theirs: str, ours: str, *, bias: bool = False) -> tuple[Rule, ...]:
    """Returns the rules of the kernel of a convolution, and of its bias.

    Args:
      theirs: the module's name in the file.
      ours: our path.
      bias: True where it has one.
    """
    kernel = Rule(f"{theirs}.weight", f"{ours}/kernel", CONV)
    return (kernel, Rule(f"{theirs}.bias", f"{ours}/bias")) if bias else (kernel,)


def batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Returns the rules of torch.nn.BatchNorm2d.

    Args:
      theirs: the module's name in the file.
      ours: our path.
    """
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return tuple(Rule(f"{theirs}.{a}", f"{ours}/{b}", VECTOR) for a, b in names.items())


def conv_norm(conv_name: str, norm_name: str, ours: str, *, bias: bool = False) -> tuple[Rule, ...]:
    """Returns the rules of a convolution with its batch normalisation (`backbones.layers.ConvNorm`).

    Args:
      conv_name: of the convolution in the file.
      norm_name: of the normalisation in the file.
      ours: our path.
      bias: True where the convolution has one.
    """
    return (*conv(conv_name, ours, bias=bias), *batch_norm(norm_name, f"{ours}/norm"))
