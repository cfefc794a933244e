"""Small images, and where the real data sets lie if they are there."""

import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def test_data():
    """The folder of real data sets; tests that want it are skipped where it is not."""
    beside = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("DML_JAX_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no folder of real data sets")
    return folder


@pytest.fixture(scope="session")
def encode():
    """(grey level or array, format) -> the bytes of an image file of 20 x 24 pixels."""

    def make(content, kind="PNG", mode=None):
        if np.isscalar(content):
            content = np.full((20, 24, 3), content, np.uint8)
        image = Image.fromarray(content)
        file = io.BytesIO()
        (image.convert(mode) if mode else image).save(file, kind)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def noise():
    """An image whose compressed form is long."""
    return np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
