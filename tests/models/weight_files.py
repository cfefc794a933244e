"""What the tests of files of weights share."""

import os

import numpy as np
import pytest

from dml_jax.errors import UserError
from dml_jax.models.files import open_weights


def read(path):
    with open_weights(path) as arrays:
        return dict(arrays)


def error_of(path, ask=True):
    """The text of the error that opening a file, or reading all of it, raises."""
    with pytest.raises(UserError) as caught, open_weights(path) as arrays:
        if not ask:
            pytest.fail("it was opened")
        dict(arrays)
    text = str(caught.value)
    assert "\n" not in text and os.path.basename(path) in text and "accepted" in text, text
    return text


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, strict=True)
