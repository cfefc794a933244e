"""What the configurations share: the data sets and models, and how a run is shrunk to try it out."""

from typing import Any

from ml_collections import ConfigDict, config_dict

from dml_jax import config as configs


def glyphs(size: int) -> ConfigDict:
    """The built-in letters; a little cropping in training, which no letter should be mirrored by."""
    return configs.data(name="glyphs", size=size, augment=_drawing(size))


def omniglot(size: int) -> ConfigDict:
    """The 30 background alphabets to train on, the 20 evaluation alphabets as `test`.

    A tenth of the training characters is held out as `val`. Drawings are scaled to size x size.
    """
    path = config_dict.placeholder(str)
    return configs.data(
        name="omniglot", path=path, size=size, augment=_drawing(size), validation=0.1
    )


def _drawing(size: int) -> tuple[dict[str, Any], ...]:
    crop = {"name": "random_resized_crop", "size": size, "scale": (0.7, 1.0), "ratio": (0.8, 1.25)}
    return (crop,)


def grocery_store(size: int = 224) -> ConfigDict:
    """Fine classes 0..40 to train on, 41..80 as `test`; nothing held out.

    Crops are square: on unseen groceries that gave more than stretching them (ratio 3/4 to 4/3), which the test
    images never are.
    """
    return configs.data(
        name="grocery_store",
        path=config_dict.placeholder(str),
        augment=(
            {
                "name": "random_resized_crop",
                "size": size,
                "scale": (0.3, 1.0),
                "ratio": (1.0, 1.0),
            },
            {"name": "flip", "p": 0.5},
        ),
        prepare=({"name": "center_crop", "size": size},),
    )


def convnet(size: int) -> dict[str, Any]:
    """A small residual network from scratch, 128-d."""
    return {
        "name": "convnet",
        "width": 32,
        "depth": 2,
        "embedding_dim": 128,
        "image_size": size,
        "dtype": "float32",
    }


def mobilenet_v2(size: int = 224) -> ConfigDict:
    """MobileNetV2 from the weights in a file; `--config.model.weights=` (empty) draws them instead."""
    return ConfigDict(
        {
            "name": "mobilenet_v2",
            "weights": config_dict.placeholder(str),
            "image_size": size,
            "dtype": "float32",
        }
    )


def runlocal(config: ConfigDict) -> None:
    """Shrinks the run to two steps of eight images: a sign of life, not a result."""
    config.train.epochs = 1
    config.train.batch_size = 8
    config.train.log_steps = 1
    config.evaluation.batch_size = 16
    with config.unlocked():
        config.sampler.length = 16
