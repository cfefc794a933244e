"""Files of published weights, as arrays by name: read without PyTorch, and without running what is pickled in them.

    with open_weights("resnet50-19c8e357.pth") as arrays:
        kernel = arrays["conv1.weight"]  # read now, float32 [64, 3, 7, 7]

What a file is, its content decides, not its name.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np

from dml_jax.models.files.arrays import Arrays
from dml_jax.models.files.hub import download
from dml_jax.models.files.kinds import open_path

__all__ = ["open_weights"]


@contextmanager
def open_weights(weights: str | os.PathLike[str]) -> Iterator[Mapping[str, np.ndarray]]:
    """Opens weights as a mapping from names to arrays, each of which is read when it is asked for.

    An array is a copy of its own, and nothing else is held: reading all in turn takes the memory of one. Nothing can be
    read after the `with`. A prefix "module.", "backbone." or "_orig_mod." that all names have is left out, but for
    checkpoints of ours.

    Args:
      weights: one of
        a file of safetensors, or the `.index.json` of one in shards;
        a file of `torch.save` (`.pth`, `.pt`, `.bin`), in the format of zip files or the one before PyTorch 1.6, that
          holds a dict of tensors, or one under "state_dict", "model" or "teacher" (in this order), or under another
          key where that is the only one;
        an `.npz` file of NumPy;
        a folder with one of these, under the names that the Hugging Face Hub gives them;
        the folder of a run, or of one of its checkpoints (the best one before the last): the arrays of its backbone,
          parameters and state, by their paths;
        `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION` or either with `/FILE`: a model of the Hub, from its cache or
          downloaded.

    Yields:
      The mapping. Names, lengths and `in` read no array.

    Raises:
      UserError: weights that are none of these, are cut off or cannot be read; a pickle that would do anything but
        build tensors; a model of the Hub that cannot be had. An array that turns out to be damaged raises it when it is
        asked for.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/w.npz", **{"module.kernel": np.ones((2, 3))})
      ...     with open_weights(f"{folder}/w.npz") as arrays:
      ...         list(arrays), arrays["kernel"].shape
      (['kernel'], (2, 3))
    """
    text = os.fspath(weights)
    path = download(text) if text.startswith("hf://") else os.path.expanduser(text)
    with ExitStack() as stack:
        yield Arrays(open_path(path, stack))
