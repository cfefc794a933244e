"""The backbones of "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning" (ICML 2020).

Method: multi-similarity loss, 56 draws of a class with two images each a batch, Adam with a rate of 1e-5 and a coupled
decay of 4e-4, no schedule; 128 dimensions of length 1 from a linear head.
Data: the first half of the classes to train, the second half to test, nothing held out, as that study has it; it takes
the best epoch on the test classes, while here the last one is the result.
Backbones, all from ImageNet: `resnet50` and `bn_inception` with frozen batch normalisation (running statistics are
used in training, too; scale and bias are trained), `googlenet` with batch normalisation that learns and dropout 0.2.
Each has its authors' scaling of images, which the model knows (BN-Inception takes blue first), and 224 pixels, but for
GoogLeNet 227. No run of these has been trained here to its end.

    dml train --config=icml2020:backbone=resnet50,data=cub200 --config.data.path=CUB_200_2011.tgz \\
        --config.model.weights=resnet50-19c8e357.pth --workdir=runs/icml2020

Arguments after the colon: `backbone`; `data` is cub200, cars196 or sop; `augmentation` is base, adv, big or red;
`runlocal` shrinks it to a few steps. `python -m dml_jax.models NAME` says where weights are published: for resnet
resnet50-19c8e357, for bn_inception bn_inception-52deb4733, for googlenet googlenet-1378be20.
"""

from dml_jax import config as configs

from . import common

BACKBONES = {
    "resnet50": {"name": "resnet", "size": 50, "norm": "frozen"},
    "bn_inception": {"name": "bn_inception", "norm": "frozen"},
    "googlenet": {"name": "googlenet", "norm": "batch"},
}
EPOCHS = {"cub200": 150, "cars196": 150, "sop": 100}


def get_config(arg=None):
    arg = configs.arguments(
        arg, backbone="resnet50", data="cub200", augmentation="base", runlocal=False
    )
    section = common.chosen("backbone", BACKBONES, arg.backbone)
    kinds = dict.fromkeys(common.ICML2020, 227 if arg.backbone == "googlenet" else 224)
    size = common.chosen("augmentation", kinds | {"big": 256}, arg.augmentation)
    config = configs.new()
    config.seed = 0
    config.train.epochs = common.chosen("data", EPOCHS, arg.data)
    config.data = common.published(arg.data, "names", common.icml2020(arg.augmentation, size))
    config.sampler = {"name": "class_random", "m": 2}
    config.model = common.backbone(section, embedding_dim=128, image_size=size, dtype="float32")
    config.loss = {
        "name": "revisiting_multi_similarity",
        "alpha": 2.0,
        "beta": 40.0,
        "base": 0.5,
        "epsilon": 0.1,
    }
    config.miner = None
    group = {"name": "adam", "lr": 1e-5, "weight_decay": 4e-4}
    config.optim = configs.optim(backbone=group, head=group)
    config.train.batch_size = 112
    config.train.monitor = ""
    config.evaluation.splits = ("test",)
    config.evaluation.metrics = ("e_recall@1", "e_recall@2", "e_recall@4", "nmi", "f1", "mAP_c")
    config.evaluation.batch_size = 112
    if arg.runlocal:
        common.runlocal(config)
    return config
