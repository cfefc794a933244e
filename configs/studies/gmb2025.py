"""The studies of "All You Need to Know About Training Image Retrieval Models" (2025), one factor at a time.

    dml study --study=gmb2025:factor=label_noise,data=cars196,path=cars196,weights=dinov2_vitb14_pretrain.pth \\
        --workdir=runs/label_noise --executor=slurm --jobs=8

Its protocol: 100,000 images an epoch (390 steps of 256), at most 100 epochs, the end after three without a better
precision at 1 on the last fifth of the training classes, the test of the best checkpoint; DINOv2-B, Adam at 1e-6, and
1.0 for classifiers; bfloat16 training, float32 evaluation. The paper names twelve losses by its bibliography; those are
read off it: seven that compare images and five that classify. Curves of the latter are dashed.

Where a batch asks for more classes than the split has (256 images of 1 or 2 a class on 80 classes), classes repeat
within a batch: the sampler `class_random` draws them with replacement, for all losses alike.

`factor` is one of: batch_size, label_noise, classes, dimension, images_per_class (M of the sampler), rate,
classifier_rate, losses (all that can be compared), optimizer, blocks, miner, backbone. Of the paper's 34 losses four
cannot run in its code (P2SGrad and VICReg want other arguments, RankedList and Manifold have no defaults): `losses`
runs those that need nothing but embeddings and labels.

Further arguments: `data`, `path`, `weights` (for backbone a folder with BACKBONE.pth), `seeds`, `runlocal`.
"""

import os

from dml_jax import config as configs
from dml_jax import config_files, experiments, names

from . import common

PAIRS = (
    "contrastive", "triplet_margin", "nt_xent", "multi_similarity", "circle",
    "signal_to_noise_ratio_contrastive", "threshold_consistent_margin",
)  # fmt: skip
CLASSIFIERS = ("arc_face", "cos_face", "normalized_softmax", "proxy_anchor", "soft_triple")
MORE_PAIRS = (
    "angular", "dynamic_soft_margin", "fast_ap", "generalized_lifted_structure", "histogram", "instance",
    "intra_pair_variance", "lifted_structure", "margin", "n_pairs", "nca", "pnp", "sup_con", "tuplet_margin",
)  # fmt: skip
MORE_CLASSIFIERS = ("large_margin_softmax", "proxy_nca", "sphere_face", "sub_center_arc_face")
FACTORS = {
    "batch_size": (16, 32, 64, 128, 256, 512),
    "label_noise": (0.0, 0.02, 0.04, 0.08, 0.16, 0.32),
    "classes": (0.125, 0.25, 0.5, 0.99),
    "dimension": ("cls", 32, 64, 128, 256, 512, 1024),
    "images_per_class": (1, 2, 4, 8, 16),
    "rate": (1e-7, 1e-6, 1e-5, 1e-4),
    "classifier_rate": (1e-6, 1e-4, 1e-2, 1.0, 100.0),
    "losses": (1e-7, 1e-6, 1e-5),
    "optimizer": ("adam", "rmsprop"),
    "blocks": ("all", "last_four"),
    "miner": ("multi_similarity", "none"),
    "backbone": ("dinov2_s", "dinov2_b", "dinov2_l", "resnet18", "resnet50", "resnet101"),
}
# The classes of the training split, of which four fifths are trained.
CLASSES = {"cars196": 78, "cub200": 80, "sop": 9054, "inaturalist2018": 4552}


def losses_of(factor):
    """The losses that a study compares."""
    if factor == "classifier_rate":
        return CLASSIFIERS
    if factor == "miner":
        return PAIRS
    if factor == "losses":
        return (*PAIRS, *MORE_PAIRS, *CLASSIFIERS, *MORE_CLASSIFIERS)
    return (*PAIRS, *CLASSIFIERS)


def get_study(arg=None):
    arg = configs.arguments(
        arg, factor="batch_size", data="cars196", path="", weights="", seeds=3, runlocal=False
    )
    values = names.resolve("argument factor:", FACTORS, arg.factor)

    def make(loss, **factor):
        value = factor[arg.factor]
        backbone = value if arg.factor == "backbone" else "dinov2_b"
        trained = value if arg.factor == "blocks" else "all"
        config = config_files.load(f"gmb2025:data={arg.data},backbone={backbone},trained={trained}")
        is_classifier = loss in CLASSIFIERS + MORE_CLASSIFIERS
        mines = not is_classifier and not (arg.factor == "miner" and value == "none")
        optimizer = value if arg.factor == "optimizer" else "adam"
        rate = value if arg.factor in ("rate", "losses") else 1e-6
        group = {"name": optimizer, "lr": rate}
        last = config.optim.backbone.last_blocks
        own = {"name": optimizer, "lr": value if arg.factor == "classifier_rate" else 1.0}
        m = value if arg.factor == "images_per_class" else 4
        size = value if arg.factor == "batch_size" else 256
        # More classes than there are: they repeat.
        fits = size // m <= CLASSES[arg.data] * (value if arg.factor == "classes" else 1)
        with config.unlocked():
            config.loss = {"name": loss}
            config.miner = {"name": "multi_similarity"} if mines else None
            config.optim = configs.optim(
                backbone={**group, "last_blocks": last}, head=group, loss=own
            )
            config.sampler = {
                "name": "m_per_class" if fits else "class_random",
                "m": m,
                "length": 100_000,
            }
            if arg.factor == "dimension" and value != "cls":
                config.model.embedding_dim = value
        config.train.batch_size = size
        config.evaluation.k = "max_bin_count"
        if arg.factor == "label_noise":
            config.data.label_noise = value
        if arg.factor == "classes":
            config.data.train_classes = value
        weights = arg.weights
        if arg.factor == "backbone" and weights:
            weights = os.path.join(weights, f"{value}.pth")
        common.paths(config, arg.path, weights)
        return common.small(config) if arg.runlocal else config

    cells = experiments.grid(
        make, seeds=range(arg.seeds), loss=losses_of(arg.factor), **{arg.factor: values}
    )
    return experiments.Study(
        f"{arg.factor} on {arg.data} (2025)",
        cells,
        tables=(experiments.Table("map", "loss", ("test/map_at_r",), columns=arg.factor),),
        figures=(common.lines(arg.factor, values, CLASSIFIERS + MORE_CLASSIFIERS),),
    )
