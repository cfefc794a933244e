"""The list of published weights says what the files do not."""

import re

import pytest

from dml_jax import models
from dml_jax.models.published_weights import PUBLISHED

SIDE = re.compile(r"[-_](\d{3})(?:$|\.)")


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda f: f.weights.rpartition("/")[2])
def test_a_model_is_made_of_it(file):
    model = models.get(file.model, weights="a file", **file.hyper)
    if file.model in ("plain_vit", "siglip", "clip"):
        found = SIDE.search(file.weights)
        side = int(found[1]) if found else 224
        assert model.image_size == side, "images are of the side that the name says"
        assert model.build.keywords["grid"] == side // file.hyper["patch"]


@pytest.mark.parametrize(
    ("part", "mean"),
    [
        ("augreg", 0.5),
        (".dino", 0.485),
        ("deit", 0.485),
        (".mae", 0.485),
        ("vit_b_16-", 0.485),
        ("siglip", 0.5),
        ("openai", 0.48145466),
        ("CLIP-ViT-B", 0.48145466),
        ("CLIP-ViT-L", 0.5),
        ("sat493m", 0.430),
        ("lvd1689m", 0.485),
        ("dinov2", 0.485),
    ],
)
def test_statistics(part, mean):
    """As timm's and torchvision's descriptions of the weights have them."""
    files = [f for f in PUBLISHED if part in f.weights]
    assert files
    assert {models.get(f.model, **f.hyper).mean[0] for f in files} == {mean}


def test_activations_and_biases():
    by_owner = {
        f.weights.split("/")[2]: f.hyper["activation"] for f in PUBLISHED if f.model == "clip"
    }
    assert by_owner == {"openai": "quick_gelu", "laion": "gelu"}
    biases = {
        f.weights.split("/")[2]: f.hyper.get("qkv_bias") for f in PUBLISHED if f.model == "dinov3"
    }
    assert biases == {"facebook": None, "timm": False}


def test_no_file_twice():
    assert len({f.weights for f in PUBLISHED}) == len(PUBLISHED)
