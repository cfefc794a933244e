"""A configuration of parts of one's own alone: two steps."""

from dml_jax import config as configs


def get_config(arg=None):
    configs.arguments(arg)
    config = configs.new()
    config.data = configs.data(
        name="my_parts:stripes",
        images=6,
        augment=({"name": "my_parts:invert", "p": 0.2},),
        threads=1,
    )
    config.sampler = {"name": "my_parts:in_turn", "stride": 7, "length": 16}
    config.model = {"name": "my_parts:perceptron", "embedding_dim": 4}
    config.loss = {"name": "my_parts:gap", "upper": 0.2}
    config.miner = {"name": "my_parts:nearer_than", "radius": 1.2}
    group = {"name": "my_parts:plain", "lr": 0.1, "scale": 0.5}
    group |= {"schedule": {"name": "my_parts:halving", "every": 1}}
    config.optim = configs.optim(backbone=group, head=group)
    config.train.epochs = 1
    config.train.batch_size = 8
    config.train.log_steps = 1
    config.train.monitor = "val/my_parts:mean_precision"
    config.evaluation.metrics = ("map_at_r", "my_parts:mean_precision")
    config.evaluation.batch_size = 8
    return config
