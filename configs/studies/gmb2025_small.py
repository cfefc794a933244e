"""The seven studies of the 2025 paper, reduced to what two cores train in hours: real images, small networks.

    dml study --study=gmb2025_small:factor=label_noise,data=omniglot,path=omniglot_full.zip \\
        --workdir=runs/noise --jobs=2

The protocol is that of `gmb2025`: the last fifth of the training classes is held out, training ends after three epochs
without a better precision at 1 there, and the best checkpoint is tested. What is reduced: four of the twelve losses,
two that compare images and two that classify; three values of each factor; the data sets, with their networks and the
number of images (`SETS`); Adam's rates, which are those of these networks. At these
sizes losses that classify have hardly begun to learn on Omniglot (docs/studies.md).

Arguments: `factor`; `data` is omniglot (a small network from scratch) or grocery_store (MobileNetV2 from ImageNet,
whose file is `weights`); `path`; `seeds`; `runlocal`.
"""

from dml_jax import config as configs
from dml_jax import config_files, experiments, names

from . import common

PAIRS = ("multi_similarity", "nt_xent")
CLASSIFIERS = ("cos_face", "proxy_anchor")
FACTORS = {
    "batch_size": (16, 64, 256),
    "label_noise": (0.0, 0.1, 0.3),
    "classes": (0.125, 0.5, 0.99),
    "dimension": (16, 64, 256),
    "images_per_class": (1, 4, 16),
    "rate": (0.1, 1.0, 10.0),
    "classifier_rate": (1e-4, 1e-2, 1.0),
}
# Images an epoch, epochs at most, images a batch, Adam's rate (which the factor `rate` multiplies), training classes.
SETS = {
    "omniglot": {"length": 6400, "epochs": 5, "batch": 64, "rate": 1e-3, "classes": 771},
    "grocery_store": {"length": 1024, "epochs": 3, "batch": 64, "rate": 1e-4, "classes": 33},
}


def base(data, path, weights):
    """The run of a data set before anything is compared."""
    if data == "omniglot":
        config = config_files.load("omniglot_multi_similarity:size=28")
        config.model.width = 16
    else:
        config = config_files.load("grocery_store_multi_similarity:size=96")
    with config.unlocked():
        config.model.embedding_dim = 64
        config.data.validation, config.data.validation_by = 0.2, "last_classes"
    common.paths(config, path, weights)
    config.train.monitor, config.train.patience = "val/precision_at_1", 3
    config.evaluation.splits, config.evaluation.at_end = ("val",), ("test",)
    config.evaluation.metrics = ("precision_at_1", "map_at_r")
    config.evaluation.k = "max_bin_count"
    config.evaluation.before_training = False
    return config


def get_study(arg=None):
    arg = configs.arguments(
        arg,
        factor="batch_size",
        data="omniglot",
        path="",
        weights="",
        seeds=3,
        runlocal=False,
    )
    values = names.resolve("argument factor:", FACTORS, arg.factor)
    size = names.resolve("argument data:", SETS, arg.data)

    def make(loss, **factor):
        value = factor[arg.factor]
        config = base(arg.data, arg.path, arg.weights)
        chosen = lambda name, default: value if arg.factor == name else default
        batch, m = chosen("batch_size", size["batch"]), chosen("images_per_class", 4)
        group = {"name": "adam", "lr": size["rate"] * chosen("rate", 1.0)}
        own = {"name": "adam", "lr": chosen("classifier_rate", 1e-2)}
        # More classes than there are: they repeat, for all losses alike.
        fits = batch // m <= size["classes"] * chosen("classes", 1)
        with config.unlocked():
            config.loss = {"name": loss}
            config.miner = {"name": "multi_similarity"} if loss in PAIRS else None
            config.optim = configs.optim(backbone=group, head=group, loss=own)
            config.sampler = {
                "name": "m_per_class" if fits else "class_random",
                "m": m,
                "length": size["length"],
            }
            if arg.factor == "dimension":
                config.model.embedding_dim = value
            if arg.factor == "label_noise":
                config.data.label_noise = value
            if arg.factor == "classes":
                config.data.train_classes = value
        config.train.batch_size, config.train.epochs = batch, size["epochs"]
        return common.small(config) if arg.runlocal else config

    losses = CLASSIFIERS if arg.factor == "classifier_rate" else (*PAIRS, *CLASSIFIERS)
    cells = experiments.grid(make, seeds=range(arg.seeds), loss=losses, **{arg.factor: values})
    shown = ("test/map_at_r", "test/precision_at_1")
    return experiments.Study(
        f"{arg.factor} on {arg.data} (2025, reduced)",
        cells,
        tables=tuple(
            experiments.Table(name.partition("/")[2], "loss", (name,), columns=arg.factor)
            for name in shown
        ),
        figures=(common.lines(arg.factor, values, CLASSIFIERS),),
        reference={"loss": losses[0], arg.factor: values[1]},
        text="The epoch was chosen on the last fifth of the training classes; the test classes were evaluated once.",
    )
