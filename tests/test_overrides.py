"""Fields that the command line sets: what texts become, what a new name drops, and what is refused."""

import pytest

from dml_jax import UserError, config_files, overrides
from dml_jax import config as configs


def changed(*arguments, config=None):
    """(the configuration with these overrides, the notes)."""
    config = configs.new() if config is None else config
    given, rest = overrides.split(arguments)
    assert not rest
    return config, overrides.apply(config, given)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seed=3", 3),
        ("train.epochs=3", 3),
        ("train.patience=None", None),
        ("train.micro_batch=8", 8),
        ("train.checkpoint_minutes=2", 2.0),
        ("train.monitor=", ""),
        ("train.wandb=None", "None"),  # a project may be called so
        ("train.wandb=123", "123"),
        ("evaluation.before_training", True),
        ("evaluation.before_training=false", False),
        ("evaluation.metrics=map_at_r,recall_at_1", ("map_at_r", "recall_at_1")),
        ("evaluation.metrics=map_at_r", ("map_at_r",)),
        ("evaluation.metrics=('map_at_r',)", ("map_at_r",)),
        ("evaluation.k=5", 5),
        ("evaluation.k=max_bin_count", "max_bin_count"),
        ("evaluation.gallery.test=gallery", "gallery"),
        ("data.size=64", 64),
        ("data.threads=1", 1),
        ("loss.alpha=4", 4.0),
        ("loss.distance.normalize_embeddings=False", False),
        ("optim.head.lr=1", 1.0),
        ("optim.head.warmup_steps=10", 10),
    ],
)
def test_texts_become_values(argument, value):
    start = configs.new()
    with start.unlocked():
        start.loss.distance = "cosine"
    config, notes = changed(f"--config.{argument}", config=start)
    found = config
    for key in argument.partition("=")[0].split("."):
        found = found[key]
    found = configs.plain(found)
    assert found == value and type(found) is type(value) and not notes


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("loss=triplet_margin", "loss", {"name": "triplet_margin"}),
        ("loss.name=triplet_margin", "loss", {"name": "triplet_margin"}),
        ("miner=semihard", "miner", {"name": "semihard"}),
        ("miner={'name': 'semihard'}", "miner", {"name": "semihard"}),
        ("sampler=random", "sampler", {"name": "random"}),
        ("optim.head.schedule=cosine", "optim.head.schedule", {"name": "cosine"}),
        (
            "loss.distance=lp",
            "loss",
            {"name": "multi_similarity", "beta": 9.0, "distance": {"name": "lp"}},
        ),
        (
            "evaluation.relation.level=0",
            "evaluation.relation",
            {"name": "hierarchy", "level": 0},
        ),
        ("data.augment=flip", "data.augment", ("flip",)),
        ("data.augment.0.p=0.1", "data.augment", ({"name": "flip", "p": 0.1},)),
    ],
)
def test_a_bare_name_is_enough(argument, field, value):
    start = configs.new()
    with start.unlocked():
        start.loss.beta = 9.0
        start.data.augment = ("flip",)
        start.evaluation.relation = "hierarchy"
    config, _ = changed(f"--config.{argument}", config=start)
    found = config
    for key in field.split("."):
        found = found[key]
    assert configs.plain(found) == value


def test_another_name_drops_what_was_the_others_and_says_so():
    config = config_files.load("quickstart")
    arguments = ["--config.loss.margin=0.5", "--config.loss=triplet_margin"]
    config, notes = changed(*arguments, config=config)
    assert config.loss.to_dict() == {"name": "triplet_margin", "margin": 0.5}
    assert notes == [
        "--config.loss=triplet_margin: alpha, base, beta of 'multi_similarity' are dropped",
        "the miner 'multi_similarity' stays; --config.miner=None trains without one",
    ]
    config, notes = changed("--config.loss=contrastive", "--config.miner=None", config=config)
    assert config.miner is None and len(notes) == 1


def test_what_the_same_command_sets_is_not_dropped():
    config = config_files.load("quickstart")
    arguments = ["--config.loss=circle", "--config.miner=None", "--config.loss.gamma=5.0"]
    config.loss.gamma = 3.0
    _, notes = changed(*arguments, config=config)
    assert notes == ["--config.loss=circle: alpha, base, beta of 'multi_similarity' are dropped"]
    config = config_files.load("quickstart")
    config.model.embedding_dim = 7
    own = [
        "--config.model.name=tests.training.my_parts:perceptron",
        "--config.model.embedding_dim=4",
    ]
    assert "embedding_dim" not in "".join(changed(*own, config=config)[1])


def test_a_name_that_stays_keeps_its_hyper_parameters():
    config, notes = changed(
        "--config.loss=multi_similarity", config=config_files.load("quickstart")
    )
    assert config.loss.beta == 50.0 and not notes


def test_what_surrounds_a_name_stays():
    config = config_files.load("quickstart")
    config, notes = changed(
        "--config.model=mobilenet_v2",
        "--config.optim.head=sgd",
        "--config.data=omniglot",
        config=config,
    )
    assert config.model.image_size == 32 and "depth" not in config.model
    assert config.optim.head.name == "sgd" and config.optim.head.schedule.name == "cosine"
    assert config.data.threads == 2 and config.data.name == "omniglot"
    assert any("depth, width of 'convnet' are dropped" in note for note in notes)


def test_what_refers_to_a_field_follows_it():
    config = configs.new()
    with config.unlocked():
        config.evaluation.batch_size = config.train.get_ref("batch_size")
    config, _ = changed("--config.train.batch_size=8", config=config)
    assert config.evaluation.batch_size == 8


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trian.epochs=3", "--config.trian.epochs: unknown field 'trian'; did you mean 'train'"),
        ("train.epoch=3", "unknown field of train 'epoch'; did you mean 'epochs'"),
        ("train.epochs=many", "--config.train.epochs is 'many'; accepted: a whole number"),
        ("train.epochs=2.5", "--config.train.epochs is 2.5; accepted: a whole number"),
        ("train.epochs=", "--config.train.epochs is ''; accepted: a whole number"),
        ("train.epochs.x=3", "train.epochs is 10 and has no fields"),
        ("train=3", "--config.train is 3; accepted: --config.train.FIELD=VALUE"),
        ("loss.alhpa=3", "hyper-parameter of loss 'multi_similarity': 'alhpa'; did you mean 'alpha'"),
        ("loss.alpha=-1", "--config.loss.alpha is -1; accepted: a number above 0"),
        ("loss=contrastve", "unknown loss 'contrastve'; did you mean 'contrastive'"),
        ("loss=None", "--config.loss is None; accepted: the name of a loss"),
        ("loss=3", "--config.loss is 3; accepted: the name of a loss"),
        ("loss={'name': 'contrastive', 'alpha': 1}", "hyper-parameter of loss 'contrastive': 'alpha'"),
        ("miner.epsilon=0.1", "miner is None and has no hyper-parameters; name one with --config.miner="),
        ("optim.tail.lr=1", "unknown group of optim 'tail'; accepted: backbone, head, loss"),
        ("optim=adam", "unknown group of optim 'adam'"),
        ("optim.head.lr=-1", "--config.optim.head.lr is -1; accepted: a number of at least 0"),
        ("optim.head.schedule=cosin", "unknown schedule 'cosin'; did you mean 'cosine'"),
        ("optim.head.schedule.final=1", "hyper-parameter of schedule 'constant': 'final'"),
        ("data.augment.3.p=1", "unknown place '3'; accepted: none"),
        ("evaluation.gallery.tset=x", "unknown field of gallery 'tset'; did you mean 'test'"),
    ],
)  # fmt: skip
def test_what_is_refused(argument, message):
    with pytest.raises(UserError) as error:
        changed(f"--config.{argument}")
    assert message in str(error.value)


def test_a_value_may_be_the_next_argument():
    given, rest = overrides.split(["a.jpg", "--config.seed", "3", "--config.evaluation.x", "--k=1"])
    assert [o.text for o in given] == ["3", "True"] and rest == ["a.jpg", "--k=1"]
