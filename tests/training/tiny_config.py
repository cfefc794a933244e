"""A run of seconds on a folder of small pictures: what the tests of the commands train.

Arguments after the colon: `loss` (cos_face, or multi_similarity with its miner), `sampler`, `steps`, `epochs`, and
`explode` for a rate beyond all bounds in the second epoch.
"""

from ml_collections import config_dict

from dml_jax import config as configs

SIZE = 16


def get_config(arg=None):
    arg = configs.arguments(
        arg, loss="cos_face", sampler="m_per_class", steps=12, epochs=2, explode=False
    )
    config = configs.new()
    config.data = configs.data(
        name="folder",
        path=config_dict.placeholder(str),
        channels=1,
        fractions=(0.7, 0.15, 0.15),
        augment=({"name": "random_resized_crop", "size": SIZE},),
        threads=1,
    )
    config.sampler = {"name": arg.sampler, "length": 8 * arg.steps}
    if arg.sampler == "m_per_class":
        config.sampler.m = 2
    config.model = {
        "name": "convnet",
        "width": 8,
        "depth": 1,
        "embedding_dim": 4,
        "image_size": SIZE,
    }
    config.loss = {"name": "cos_face", "margin": 0.35, "scale": 16.0}
    if arg.loss == "multi_similarity":
        config.loss = {"name": "multi_similarity"}
        config.miner = {"name": "multi_similarity", "epsilon": 0.1}
    config.optim = configs.optim(loss={"lr": 1e-2})
    if arg.explode:
        config.optim.head.schedule = {"name": "step", "milestones": (1,), "gamma": 1e38}
    config.train.epochs = arg.epochs
    config.train.batch_size = 8
    config.train.checkpoint_steps = 15
    config.train.log_steps = 1
    config.evaluation.batch_size = 8
    return config
