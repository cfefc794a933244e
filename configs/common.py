"""What the configurations share: sections for data sets and models, and a way to shrink a run to try it out."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from dml_jax import config as configs
from dml_jax import names


def glyphs(size: int) -> ConfigDict:
    """Returns the section `data` of the built-in letters, size x size.

    Training crops them a little, and mirrors none: a letter that is mirrored is another one.
    """
    return configs.data(name="glyphs", size=size, augment=_drawing(size))


def omniglot(size: int) -> ConfigDict:
    """Returns the section `data` of Omniglot: 30 background alphabets to train on, 20 evaluation alphabets as `test`.

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
    """Returns the section `data` of Grocery Store: fine classes 0..40 to train on, 41..80 as `test`; none held out.

    Crops are square. On the seed that they were chosen with that gave more than stretching them (ratio 3/4 to 4/3);
    over several seeds no difference is seen (benchmarks/results/beside_torch.md).
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


# The training images of the ICML 2020 study, by its --augmentation; "big" is "base" at 256 pixels.
ICML2020 = ("base", "adv", "big", "red")


def icml2020(augmentation: str, size: int = 224) -> dict[str, tuple[dict[str, Any], ...]]:
    """Returns `augment` and `prepare` as the code of the ICML 2020 study has them.

    Args:
      augmentation: one of `ICML2020`.
      size: of the crops: 224, and 227 for GoogLeNet; "big" takes 256.
    """
    side = 256 if augmentation == "big" else size
    crop = {"name": "random_resized_crop", "size": side, "scale": (0.08, 1.0)}
    flip = {"name": "flip", "p": 0.5}
    jitter = {
        "name": "color_jitter",
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "hue": 0.2,
    }
    chains = {
        "base": (crop, flip),
        "big": (crop, flip),
        "adv": (crop, {"name": "grayscale", "p": 0.2}, jitter, flip),
        "red": ({"name": "resize", "size": 256}, {"name": "random_crop", "size": side}, flip),
    }
    prepare = ({"name": "resize", "size": 256}, {"name": "center_crop", "size": side})
    return {"augment": chains[augmentation], "prepare": prepare}


def gmb2025(size: int = 224) -> dict[str, tuple[dict[str, Any], ...]]:
    """Returns `augment` and `prepare` as the code of the 2025 study has them: stretched to a square, RandAugment."""
    square = {"name": "resize", "size": (size, size)}
    policy = {"name": "rand_augment", "num_ops": 3, "interpolation": "bilinear"}
    return {"augment": (square, policy), "prepare": (square,)}


def published(
    name: str, order: str, sections: dict[str, tuple[dict[str, Any], ...]], **options: Any
) -> ConfigDict:
    """Returns the section `data` of a published set as both papers' code reads it, whose path is still to be set.

    Args:
      name: cub200, cars196, sop, inshop or inaturalist2018.
      order: of the classes of cars196, "names" (ICML 2020) or "devkit" (2025).
      sections: `augment` and `prepare`.
      **options: further fields.
    """
    # Neither turns images by what a camera has written into the file.
    given = {"path": config_dict.placeholder(str), "exif": False, **sections, **options}
    return configs.data(name=name, **given, **({"order": order} if name == "cars196" else {}))


def photographs(size: int) -> ConfigDict:
    """Returns the section `data` of a folder or a CSV file of photographs, whose path is still to be set.

    Half of the classes are trained, a tenth is `val`, the rest `test`, where the data do not say so themselves.
    """
    return configs.data(
        name="folder",
        path=config_dict.placeholder(str),
        channels=3,
        fractions=(0.5, 0.1, 0.4),
        augment=(
            {"name": "random_resized_crop", "size": size, "scale": (0.3, 1.0)},
            {"name": "flip", "p": 0.5},
        ),
        prepare=({"name": "resize", "size": size}, {"name": "center_crop", "size": size}),
    )


def convnet(size: int, channels: int = 1) -> dict[str, Any]:
    """Returns the section `model` of a small residual network that starts from scratch, with 128 dimensions."""
    return {
        "name": "convnet",
        "channels": channels,
        "width": 32,
        "depth": 2,
        "embedding_dim": 128,
        "image_size": size,
        "dtype": "float32",
    }


def mobilenet_v2(size: int = 224) -> ConfigDict:
    """Returns the section `model` of MobileNetV2 with the weights of a file."""
    return backbone({"name": "mobilenet_v2"}, image_size=size, dtype="float32")


def backbone(section: dict[str, Any], **more: Any) -> ConfigDict:
    """Returns the section `model` of a published network with the weights of a file.

    `--config.model.weights=FILE` names it; `--config.model.weights=` (empty) draws them instead.

    Args:
      section: the name and what belongs to the network.
      **more: further hyper-parameters.
    """
    return ConfigDict({**section, "weights": config_dict.placeholder(str), **more})


def advised(section: dict[str, Any]) -> ConfigDict:
    """Returns what the presets share: photographs of one's own, a DINOv2 backbone, the rates of the 2025 study.

    Args:
      section: the name and what belongs to the backbone.
    """
    config = configs.new()
    config.seed = 0
    config.data = photographs(224)
    config.model = backbone(section, image_size=224, dtype="float32")
    group = {"name": "adam", "lr": 1e-6}
    config.optim = configs.optim(backbone=group, head=group, loss={"lr": 1.0})
    config.train.epochs = 100
    config.train.precision = "bfloat16"
    config.train.monitor = "val/map_at_r"
    config.train.patience = 3
    config.evaluation.splits = ("val",)
    config.evaluation.at_end = ("test",)
    config.evaluation.before_training = True
    config.evaluation.batch_size = 64
    return config


def chosen(argument: str, table: Mapping[str, Any], value: str) -> Any:
    """Returns what an argument of a configuration chooses from a table.

    Args:
      argument: its name.
      table: what can be chosen.
      value: of the argument.

    Raises:
      UserError: a value that is not in the table.
    """
    return names.resolve(f"{argument} of the config:", table, value)


def runlocal(config: ConfigDict) -> None:
    """Shrinks the run to two steps of eight images, which is a sign of life and not a result."""
    config.train.epochs = 1
    config.train.batch_size = 8
    config.train.log_steps = 1
    config.evaluation.batch_size = 16
    with config.unlocked():
        config.sampler.length = 16
