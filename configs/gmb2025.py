"""The backbones of "All You Need to Know About Training Image Retrieval Models" (2025).

Method: multi-similarity loss and miner with the defaults of PyTorch Metric Learning, 64 classes x 4 images a batch,
Adam with a rate of 1e-6 for all weights, no head: the class token of DINOv2, of length 1, is the embedding.
Data: the first 80 % of the training classes are trained, the others are `val`; training stops after 3 epochs without
a better precision at 1 there, or after 100, and the best epoch is tested.
Backbones: `dinov2_b`, which the paper found best, `dinov2_s`, `dinov2_l`, `dinov2_g`, and the ResNets that the paper
compares them with, of which it does not say which (`resnet18`, `resnet50`, `resnet101`, weights of torchvision).
`trained` is `all`, or `last_four` for the last four blocks alone, which the paper found worse.
The forward and backward pass is bfloat16, evaluation is float32. No run of these has been trained here to its end.

    dml train --config=gmb2025:backbone=dinov2_s,data=cars196 --config.data.path=cars196.zip \\
        --config.model.weights=dinov2_vits14_pretrain.pth --workdir=runs/gmb2025

Arguments after the colon: `backbone`; `data` is cars196, cub200, sop or inaturalist2018; `trained`; `runlocal` shrinks
it to a few steps. `python -m dml_jax.models vit` says where weights are published; those of facebookresearch/dinov2
have names such as dinov2_vitb14_pretrain.pth.
"""

from dml_jax import config as configs

from . import common

# Position embeddings are resampled as the authors' code does it.
BACKBONES = {
    **{f"dinov2_{size}": {"name": "vit", "size": size, "offset": 0.1} for size in "sblg"},
    **{f"resnet{size}": {"name": "resnet", "size": size} for size in (18, 50, 101)},
}
DATA = ("cars196", "cub200", "sop", "inaturalist2018")
TRAINED = {"all": None, "last_four": 4}


def get_config(arg=None):
    arg = configs.arguments(arg, backbone="dinov2_b", data="cars196", trained="all", runlocal=False)
    section = common.chosen("backbone", BACKBONES, arg.backbone)
    name = common.chosen("data", {name: name for name in DATA}, arg.data)
    config = configs.new()
    config.seed = 0
    config.data = common.published(
        name, "devkit", common.gmb2025(224), validation=0.2, validation_by="last_classes"
    )
    config.sampler = {"name": "m_per_class", "m": 4}
    config.model = common.backbone(section, image_size=224, dtype="float32")
    config.loss = {"name": "multi_similarity", "alpha": 2.0, "beta": 50.0, "base": 0.5}
    config.miner = {"name": "multi_similarity", "epsilon": 0.1}
    last_blocks = common.chosen("trained", TRAINED, arg.trained)
    config.optim = configs.optim(
        backbone={"name": "adam", "lr": 1e-6, "last_blocks": last_blocks},
        head={"name": "adam", "lr": 1e-6},
    )
    config.train.epochs = 100
    config.train.batch_size = 256
    config.train.precision = "bfloat16"
    config.train.monitor = "val/precision_at_1"
    config.train.patience = 3
    config.evaluation.splits = ("val",)
    config.evaluation.at_end = ("test",)
    config.evaluation.before_training = True
    config.evaluation.metrics = ("precision_at_1", "map_at_r")
    config.evaluation.batch_size = 64
    if arg.runlocal:
        common.runlocal(config)
    return config
