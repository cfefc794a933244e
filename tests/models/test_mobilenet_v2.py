"""MobileNetV2: its shape, and the published weights where the data folder is present."""

import io
import os
import pathlib
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from dml_jax import models
from dml_jax.models.files import open_weights
from dml_jax.trees import flatten

DATA = pathlib.Path(
    os.environ.get("DML_JAX_TEST_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data")
)
WEIGHTS = DATA / "weights" / "mobilenet_v2_imagenet_float32.npz"
PHOTOGRAPHS = DATA / "grocery_store" / "grocery_store_256.tar"


def test_shapes_of_the_paper():
    model = models.get("mobilenet_v2")
    flat = flatten(jax.eval_shape(model.init, jax.random.key(0))["params"]["backbone"])
    assert len(flat) == 104
    assert sum(a.size for a in flat.values()) == 2_206_816
    assert flat["stem/kernel"].shape == (3, 3, 3, 32)
    assert flat["block_06/expand/kernel"].shape == (1, 1, 32, 192)
    assert flat["block_06/depthwise/kernel"].shape == (3, 3, 1, 192)
    assert flat["block_16/project/kernel"].shape == (1, 1, 960, 320)
    assert "block_00/expand/kernel" not in flat


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="no Grocery Store photographs")
def test_published_weights_recognise_fruit():
    """ImageNet's classes with the background first: 955 is banana, 952 is lemon."""
    model = models.get("mobilenet_v2", weights=WEIGHTS, normalize=False)
    images = []
    with tarfile.open(PHOTOGRAPHS) as tar:
        for fruit in ("Banana", "Lemon"):
            file = tar.extractfile(f"grocery_store/test/Fruit/{fruit}/{fruit}_006.jpg")
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            left, top = (image.width - 224) // 2, (image.height - 224) // 2
            images.append(np.asarray(image.crop((left, top, left + 224, top + 224))))
    features, _ = jax.jit(model.apply)(model.init(jax.random.key(0)), np.stack(images))
    with open_weights(WEIGHTS) as file:
        kernel = file["classifier/kernel"].reshape(1280, 1001)
    assert np.argmax(features @ kernel, 1).tolist() == [955, 952]
