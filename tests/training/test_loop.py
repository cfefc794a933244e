"""The loop's decisions: when it stops, what it keeps, what it reports."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax import UserError, checkpoints, config_files, csv_files, evaluate, models, names
from dml_jax import config as configs
from dml_jax import losses as losses_of
from dml_jax.training import build, feed, loop, saving, session
from dml_jax.training.experiment import Experiment
from dml_jax.training.loading import Loader
from dml_jax.training.position import Best, Position
from dml_jax.training.preemption import Terminated
from dml_jax.training.reporting import IN_FLIGHT, Reporter
from dml_jax.training.validation import Validator
from tests.training.commands import CONFIG, losses, pictures, rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data") / "pictures")


def config_of(data, arguments="steps=3,epochs=9"):
    config = config_files.load(f"{CONFIG}:{arguments}")
    config.data.path = str(data)
    config.train.devices = 1
    return config


def test_early_stopping(data, tmp_path, capsys, monkeypatch):
    config = config_of(data)
    # Nothing moves, so no epoch is better than the first.
    for group in config.optim.values():
        group.lr = 0.0
    config.train.patience = 2
    loop.train(config, str(tmp_path))
    assert "stopping early" in capsys.readouterr().out
    assert max(losses(tmp_path)) == 9
    assert checkpoints.find(str(tmp_path))[0] == ("best", 3)
    assert checkpoints.find(str(tmp_path), "last")[0] == ("last", 9)
    # Started again, it comes to the same end at once, without a file of weights: the checkpoint has the parameters.
    gone = dataclasses.replace(build.model(config.model), weights="gone.npz")
    monkeypatch.setattr(build, "model", lambda section: gone)
    loop.train(config, str(tmp_path))
    assert evaluate.restored(str(tmp_path), "last", gone)[:2] == ("last", 9)
    assert "stopping early" in capsys.readouterr().out
    assert list(losses(tmp_path)) == list(range(1, 10))


def test_without_epochs_the_model_is_evaluated_and_saved_as_it_begins(data, tmp_path, capsys):
    config = config_of(data, "steps=2,epochs=0")
    config.evaluation.at_end = ("test",)
    results = loop.train(config, str(tmp_path))
    assert {name.partition("/")[0] for name in results} == {"val", "test"}
    model = build.model(config.model)
    assert evaluate.restored(str(tmp_path), "best", model)[:2] == ("last", 0)
    assert not (tmp_path / "curves.png").exists()
    # Started again it comes to the same end, and with epochs it goes on from there.
    assert loop.train(config, str(tmp_path)) == results
    config.train.epochs = 1
    loop.train(config, str(tmp_path))
    assert list(losses(tmp_path)) == [1, 2]


def test_weights_given_to_a_run_that_goes_on_are_not_stored(data, tmp_path, capsys):
    config = config_of(data, "steps=2,epochs=1")
    config.model.weights = ""
    loop.train(config, str(tmp_path))
    config.model.weights = "other.npz"
    config.train.epochs = 2
    loop.train(config, str(tmp_path))
    assert "model.weights='other.npz' is not read" in capsys.readouterr().out
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["model"]["weights"], stored["train"]["epochs"]) == ("", 2)


def test_a_part_of_the_training_split_with_wrong_labels(data, tmp_path):
    """The run stores what it trained; the evaluation of the training split has the true labels."""
    config = config_of(data, "steps=2,epochs=1")
    config.data.update(
        train_classes=6,
        train_images_per_class=3,
        label_noise=0.5,
        validation=0.2,
        fractions=(0.8, 0.0, 0.2),
    )
    experiment = Experiment.from_config(config)
    loop.train(config, str(tmp_path))
    stored = csv_files.read_rows(tmp_path / "training_images.csv")
    wrong = [row for row in stored if row["label"] != row["true_label"]]
    assert len(stored) == len(experiment.source) and len({row["true_label"] for row in stored}) == 6
    assert len(wrong) == round(len(stored) / 2)
    assert all(row["image"].startswith(row["true_label"]) for row in stored)
    evaluated = build.source(config, "train")
    assert {evaluated.class_names[c] for c in evaluated.labels} == {r["true_label"] for r in stored}
    assert len(build.source(config, "val").class_names) == 3


@pytest.mark.parametrize(
    "field, steps, says",
    [
        ("augment", ({"name": "random_resized_crop", "size": 24},), r"random_resized_crop\) ends in images of 24 x 24"),
        ("prepare", ({"name": "resize", "size": 16},), r"resize\) ends in images whose size depends on the image"),
        ("prepare", ("flip", {"name": "center_crop", "size": (16, 20)}), "ends in images of 16 x 20"),
    ],
)  # fmt: skip
def test_images_of_another_size_than_the_model_s_are_found_before_any_is_read(
    field, steps, says, data
):
    config = config_of(data)
    config.data.path = str(data / "nowhere")
    config.data[field] = steps
    with pytest.raises(
        UserError, match=rf"data\.{field} .*{says}.* takes 16 x 16 \(model.image_size\)"
    ):
        Experiment.from_config(config)


def test_a_backbone_with_published_weights_says_that_it_begins_without():
    resnet, section = models.get("resnet", size=18), {"name": "resnet", "size": 18}
    (note,) = session.beginning(resnet, section)
    assert note.startswith("model 'resnet' begins from random weights; --config.model.weights=FILE")
    assert session.beginning(resnet, {**section, "weights": ""}) == []
    assert session.beginning(models.get("convnet"), {"name": "convnet"}) == []


def test_too_few_classes_are_those_of_the_training_split(data, tmp_path):
    config = config_of(data, "steps=2,epochs=1")
    config.train.batch_size = 64
    with pytest.raises(
        UserError, match=r"training split \(.* 14 classes\): .*--config.train.batch_size=28"
    ):
        loop.train(config, str(tmp_path))


def test_patience_none_and_no_monitor(data, tmp_path):
    config = config_of(data, "steps=2,epochs=3")
    for group in config.optim.values():
        group.lr = 0.0
    config.train.patience = None
    loop.train(config, str(tmp_path / "a"))
    assert max(losses(tmp_path / "a")) == 6
    config.train.monitor = ""
    config.train.patience = 0
    loop.train(config, str(tmp_path / "b"))
    assert max(losses(tmp_path / "b")) == 6
    assert checkpoints.find(str(tmp_path / "b"), "best")[0] == ("last", 6)


def test_losses_on_views(data, tmp_path):
    """Two views of each image train what compares views; what cannot work is refused before the first step."""
    config = config_of(data, "steps=2,epochs=1")
    config.train.monitor = ""
    config.train.views = 2
    config.loss = {"name": "self_supervised", "loss": "vic_reg", "symmetric": False}
    loop.train(config, str(tmp_path / "vic_reg"))
    seen = losses(tmp_path / "vic_reg")
    assert max(seen) == 2 and all(0 < float(value) < 100 for value in seen.values())
    config.train.micro_batch = 4
    loop.train(config, str(tmp_path / "micro"))
    assert float(losses(tmp_path / "micro")[1]) == pytest.approx(float(seen[1]), rel=1e-4)
    for loss, views, message in (
        ("vic_reg", 2, "accepted: {'name': 'self_supervised', 'loss': 'vic_reg'"),
        ({"name": "self_supervised", "loss": "nt_xent"}, 1, "accepted: train.views=2"),
        ({"name": "multiple", "losses": ["nt_xent", "vic_reg"]}, 2, "two views of a batch"),
    ):
        with pytest.raises(ValueError, match=message):
            build.check_views(names.build("loss", losses_of.get, losses_of.Loss, loss), views)


@pytest.mark.parametrize(("better", "sign"), [("high", 1), ("low", -1)])
def test_judged(better, sign):
    position = Position()
    waited = []
    for value in (0.3, 0.2, 0.3, 0.4, 0.39, 0.1):
        position = position.after_step().judged({"val/x": sign * value}, {"val/x": better})
        waited.append(position.waited)
    assert waited == [0, 1, 2, 0, 1, 2]
    assert position.best == {"val/x": Best(sign * 0.4, 4)}
    stored = json.loads(json.dumps(position.to_json()))
    assert Position.from_json(stored, total=6) == position


def test_an_error_rate_is_better_when_it_is_low(data, tmp_path, monkeypatch, capsys):
    values = iter([0.5, 0.3, 0.1, 0.2, 0.4])
    monkeypatch.setattr(Validator, "evaluate", lambda *_: {"val/eer": next(values)})
    config = config_of(data, "steps=1,epochs=9")
    config.evaluation.metrics = ("eer",)
    config.train.monitor = "val/eer"
    config.train.patience = 2
    loop.train(config, str(tmp_path))
    assert "no better val/eer than 0.1000 (step 3) in 2 evaluations" in capsys.readouterr().out
    assert checkpoints.find(str(tmp_path))[0] == ("best", 3)
    assert checkpoints.find(str(tmp_path), "last")[0] == ("last", 5)


def test_a_monitor_without_a_better_direction(data, tmp_path):
    config = config_of(data)
    config.evaluation.metrics = ("dists@intra",)
    config.train.monitor = "val/dists@intra"
    with pytest.raises(UserError, match="of dists@intra neither high nor low values are better"):
        loop.train(config, str(tmp_path))


def test_epochs_under_a_schedule_that_depends_on_them(data, tmp_path):
    """A run of one epoch goes on with two where its rates stay what they were."""
    for name, refused in (("step", False), ("cosine", True)):
        config = config_of(data, "steps=2,epochs=1")
        config.evaluation.splits = ()
        config.train.monitor = ""
        config.optim.head.schedule = {"name": name}
        loop.train(config, str(tmp_path / name))
        config.train.epochs = 2
        if refused:
            message = r"schedule of optim\.head depends on train\.epochs.* began with"
            with pytest.raises(UserError, match=message):
                loop.train(config, str(tmp_path / name))
            assert max(losses(tmp_path / name)) == 2
        else:
            loop.train(config, str(tmp_path / name))
            assert max(losses(tmp_path / name)) == 4


@pytest.mark.parametrize("name", ["n_pairs", "lifted_structure", "multi_similarity", "histogram"])
def test_losses_that_find_no_pairs_are_refused(name):
    singles = np.arange(8)
    loss = losses_of.get(name)
    both = losses_of.get("multiple", losses=["arc_face", name])
    for refused in (loss, both):
        with pytest.raises(UserError, match=r"a single image, and loss '.*' compares"):
            build.check_pairs(refused, singles)
        build.check_pairs(refused, singles // 2)
        build.check_pairs(refused, singles, views=2)


@pytest.mark.parametrize("name", ["proxy_anchor", "manifold", "instance", "cos_face"])
def test_losses_that_need_no_pairs(name):
    """They are let through, and do have a gradient."""
    singles, loss = np.arange(8, dtype=np.int32), losses_of.get(name)
    build.check_pairs(loss, singles)
    key = jax.random.key(0)
    variables = loss.init(key, 8, 4)
    embeddings = jax.random.normal(key, (8, 4))
    gradient = jax.grad(lambda e: loss.apply(variables, e, singles, key=key)[0].compute())
    assert float(jnp.abs(gradient(embeddings)).max()) > 1e-5
    memory = losses_of.get("cross_batch_memory", loss="contrastive", memory_size=8)
    build.check_pairs(memory, singles)
    build.check_pairs(losses_of.get("self_supervised", loss="nt_xent"), singles)


def test_reports(data, tmp_path, capsys):
    config = config_of(data, "steps=4,epochs=2")
    config.evaluation.before_training = True
    config.evaluation.splits = ("val", "test")
    config.train.log_steps = 3
    config.train.profile = (2, 3)
    config.optim.head.warmup_steps = 4
    result = loop.train(config, str(tmp_path))
    table = rows(tmp_path)
    groups = ("backbone", "head", "loss")
    logged = [[float(r[f"lr/{group}"]) for group in groups] for r in table if r["loss"]]
    np.testing.assert_allclose(logged[:2], [[1e-3, 2.5e-4, 1e-2], [1e-3, 7.5e-4, 1e-2]], rtol=1e-5)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    # The first, every third step and every epoch's last; evaluation before and after every epoch.
    assert [int(r["step"]) for r in table if r["loss"]] == [1, 3, 4, 6, 8]
    assert [int(r["epoch"]) for r in table if r["val/map_at_r"]] == [0, 1, 2]
    assert result["test/map_at_r"] == float(table[-1]["test/map_at_r"])
    printed = capsys.readouterr().out
    assert "1 of 14 classes have fewer than m=2" in printed and "steps 2 to 3 are traced" in printed
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert list((tmp_path / "tensorboard").iterdir())
    assert json.loads((tmp_path / "config.json").read_text()) == configs.to_dict(config)
    # What evaluation restores is what training measured last.
    found, by_class, steps, files = evaluate.evaluate(
        config, evaluate.build.model(config.model), str(tmp_path), "last", "test", tmp_path / "x"
    )
    assert found["last, step 8"]["map_at_r"] == pytest.approx(result["test/map_at_r"], abs=1e-6)
    assert all(f.stat().st_size for f in files) and len(files) == 7
    assert not steps and not by_class


def test_micro_batches_and_blocks_train_the_same(data, tmp_path):
    config = config_of(data, "loss=multi_similarity,steps=4,epochs=1")
    loop.train(config, str(tmp_path / "whole"))
    config.train.micro_batch = 4
    config.train.block = 2
    loop.train(config, str(tmp_path / "parts"))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.fixture(scope="module")
def alphabets(tmp_path_factory):
    """Omniglot's layout: 3 alphabets of 4 characters of 4 drawings."""
    folder = tmp_path_factory.mktemp("omniglot")
    plain = pictures(folder / "plain", classes=13)
    for c in range(12):
        there = folder / "images_background" / f"Alphabet{c // 4}" / f"character{c % 4:02}"
        there.parent.mkdir(parents=True, exist_ok=True)
        (plain / f"class{c + 1:02}").rename(there)
    return folder


RANKING = {"name": "happier", "relation": "hierarchy"}


@pytest.mark.parametrize(("level", "weights"), [(-1, 9), (0, 3)])
def test_a_hierarchy(alphabets, tmp_path, monkeypatch, level, weights):
    """HAPPIER as a whole from a config; class weights of the level, of the characters that are not held out."""
    init, made = saving.states.init, []
    monkeypatch.setattr(
        saving.states, "init", lambda *given, **how: made.append(init(*given, **how)) or made[-1]
    )
    config = config_of(alphabets, "steps=3,epochs=2")
    config.data = configs.data(name="omniglot", path=str(alphabets), size=16, validation=0.25)
    softmax = {"name": "normalized_softmax", "relation": {"name": "hierarchy", "level": level}}
    parts = {"clusters": softmax, "ranking": RANKING}
    config.loss = {
        "name": "multiple",
        "losses": parts,
        "weights": {"clusters": 0.1, "ranking": 0.9},
    }
    loop.train(config, str(tmp_path))
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert made[0]["params"]["loss"]["clusters"]["weights"].shape == (weights, 4)


def test_labels_that_the_data_do_not_have(data, tmp_path):
    config = config_of(data)
    config.loss = RANKING
    with pytest.raises(ValueError, match="relation 'hierarchy' needs coarser classes"):
        loop.train(config, str(tmp_path))
    config.loss = {"name": "nt_xent", "relation": {"name": "overlap", "threshold": 2}}
    with pytest.raises(ValueError, match="relation 'overlap' needs a set of labels"):
        loop.train(config, str(tmp_path))


def test_a_split_that_cannot_be_scored(data, tmp_path):
    config = config_of(data, "steps=2,epochs=1")
    singles = pictures(tmp_path / "pictures" / "val", images=1)
    (tmp_path / "pictures" / "train").symlink_to(data)
    config.data.path = str(singles.parent)
    with pytest.raises(ValueError, match="val/map_at_r is not a number"):
        loop.train(config, str(tmp_path / "run"))


def test_a_split_of_one_class_is_remarked_on(data, tmp_path, capsys):
    config = config_of(data, "steps=1,epochs=1")
    config.data.fractions = (0.75, 0.05, 0.2)
    loop.train(config, str(tmp_path))
    assert "note: val has the single class" in capsys.readouterr().out


def evaluations(workdir):
    return [int(r["step"]) for r in rows(workdir) if r["val/map_at_r"]]


def test_when_it_is_evaluated(data, tmp_path):
    """After so many steps or epochs, always at the end, and at the end on another split with the best model."""
    config = config_of(data, "steps=4,epochs=3")
    config.train.update(eval_epochs=2, eval_steps=3, patience=None, log_steps=2)
    config.train.monitor = ("val/map_at_r", "val/recall_at_2")
    config.evaluation.at_end = ("test",)
    config.train.ema = 0.5
    found = loop.train(config, str(tmp_path / "whole"))
    assert evaluations(tmp_path / "whole") == [3, 6, 8, 9, 12]
    assert sorted(losses(tmp_path / "whole")) == [1, 2, 4, 6, 8, 10, 12]
    # Each monitored metric has its best model, at the step that its own values say.
    for kind, metric in (("best", "val/map_at_r"), ("best_val_recall_at_2", "val/recall_at_2")):
        values = {int(r["step"]): float(r[metric]) for r in rows(tmp_path / "whole") if r[metric]}
        best = max(values, key=lambda step: (values[step], -step))
        assert checkpoints.find(str(tmp_path / "whole"), kind)[0] == (kind, best)
    # The numbers at the end are those of the best model, which is the average of the trained ones.
    model = build.model(config.model)
    table, *_ = evaluate.evaluate(
        config, model, str(tmp_path / "whole"), "best", "test", tmp_path / "alone"
    )
    (row,) = table.values()
    assert found["test/map_at_r"] == pytest.approx(row["map_at_r"], abs=1e-6)
    trained = checkpoints.Checkpoints.open(str(tmp_path / "whole" / "checkpoints"))
    assert (trained.last.directory / "12").exists()
    trained.close()


def test_a_run_goes_on_amid_evaluations(data, tmp_path, monkeypatch):
    """A run that ends in an evaluation begins with it, and comes to the numbers of a run that did not."""
    config = config_of(data, "steps=4,epochs=2")
    config.train.update(eval_steps=3, patience=None, ema=0.5)
    loop.train(config, str(tmp_path / "whole"))
    evaluate_it, calls = Validator.evaluate, []

    def breaks(self, state):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate_it(self, state)

    monkeypatch.setattr(Validator, "evaluate", breaks)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, str(tmp_path / "ended"))
    loop.train(config, str(tmp_path / "ended"))
    kept = ("step", "loss", "val/map_at_r")
    of = lambda name: [{k: r[k] for k in kept} for r in rows(tmp_path / name)]
    assert of("ended") == of("whole")


def test_what_is_not_finite_stops_the_run_when_it_is_looked_at(data, tmp_path):
    """The flag stays: the step and its images are named, however many steps later the metrics are fetched."""
    config = config_of(data, "steps=8,epochs=2,explode")
    config.train.update(log_steps=7, checkpoint_steps=3)
    with pytest.raises(
        UserError, match=r"step 9 is not finite: loss .*images of its batch by id: "
    ) as found:
        loop.train(config, str(tmp_path))
    assert str(found.value).endswith("last/8")


def test_transfers(data, tmp_path, monkeypatch):
    """In 50 steps metrics come to the host five times, and no step waits for the one before it."""
    fetched, waited, started = [], [], []
    fetch, wait = jax.device_get, jax.block_until_ready
    monkeypatch.setattr(
        loop.jax, "device_get", lambda tree: fetched.append(len(started)) or fetch(tree)
    )
    monkeypatch.setattr(
        loop.jax, "block_until_ready", lambda x: waited.append(len(started)) or wait(x)
    )
    report = Reporter.step
    monkeypatch.setattr(
        Reporter, "step", lambda self, *a, **k: started.append(0) or report(self, *a, **k)
    )
    monkeypatch.setattr(feed, "ENOUGH", 10**9)
    config = config_of(data, "steps=50,epochs=1")
    config.train.update(log_steps=10, checkpoint_steps=0, monitor="")
    config.evaluation.splits = ()
    loop.train(config, str(tmp_path))
    # Three steps later each, the last one when the epoch is over.
    assert fetched == [4, 13, 23, 33, 43, 50]
    assert all(at - done >= IN_FLIGHT for done, at in enumerate(waited, 1))
    assert sorted(losses(tmp_path)) == [1, 10, 20, 30, 40, 50]


def test_what_is_the_limit(data, tmp_path, capsys, monkeypatch):
    """Said once, after the first steps; a transform that sleeps makes the input the limit."""
    config = config_of(data, "steps=8,epochs=2")
    loop.train(config, str(tmp_path / "fast"))
    assert capsys.readouterr().out.count(" is the limit") == 1
    monkeypatch.setattr(feed, "ENOUGH", 17)
    loop.train(config, str(tmp_path / "short"))
    assert " is the limit" not in capsys.readouterr().out
    monkeypatch.setattr(feed, "ENOUGH", 16)
    read = Loader.train_batches

    def slow(self, *given, **how):
        for batch in read(self, *given, **how):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(Loader, "train_batches", slow)
    loop.train(config, str(tmp_path / "slow"))
    out = capsys.readouterr().out
    assert "the input is the limit" in out and "data.threads=1" in out
    assert losses(tmp_path / "slow") == losses(tmp_path / "fast")


def test_checkpoints_elsewhere(data, tmp_path):
    """A run goes on from them, commands find them, and another folder does not begin anew unnoticed."""
    config = config_of(data, "steps=2,epochs=1")
    run, there = tmp_path / "run", tmp_path / "scratch"
    config.train.checkpoints = str(there)
    loop.train(config, str(run))
    assert not (run / "checkpoints").exists() and (there / "last" / "2").is_dir()
    assert checkpoints.find(str(run))[0] == ("best", 2)
    assert evaluate.restored(str(run), "best", build.model(config.model))[:2] == ("best", 2)
    for other in ("", "beside"):
        config.train.checkpoints = other
        with pytest.raises(UserError, match=r"the checkpoints of .*run are in .*scratch, not in"):
            loop.train(config, str(run))
    there.rename(run / "beside")
    config.train.epochs = 2
    loop.train(config, str(run))
    assert sorted(losses(run)) == [1, 2, 3, 4]
    assert checkpoints.find(str(run), "last")[0] == ("last", 4)


def test_precision(data, tmp_path):
    """The backbone of the step computes in bfloat16; evaluation and what is stored are float32."""
    config = config_of(data, "steps=2,epochs=1")
    config.evaluation.before_training = True
    found = {}
    for precision in ("", "bfloat16"):
        config.train.precision = precision
        loop.train(config, str(tmp_path / f"run{precision}"))
        found[precision] = rows(tmp_path / f"run{precision}")
    before, first = (lambda r: r["val/map_at_r"]), (lambda r: float(r["loss"]))
    assert before(found[""][0]) == before(found["bfloat16"][0]) != ""
    assert first(found[""][1]) != first(found["bfloat16"][1])
    assert first(found[""][1]) == pytest.approx(first(found["bfloat16"][1]), rel=0.02)
    model = build.model(config.model)
    _, _, variables = evaluate.restored(str(tmp_path / "runbfloat16"), "last", model)
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {np.dtype(np.float32)}


def test_a_signal_in_the_evaluation_at_the_end(data, tmp_path, monkeypatch, capsys):
    config = config_of(data, "steps=2,epochs=1")
    config.evaluation.at_end = ("test",)

    def ends(self, variables):
        raise Terminated

    with monkeypatch.context() as patched:
        patched.setattr(Validator, "at_end", ends)
        with pytest.raises(SystemExit):
            loop.train(config, str(tmp_path))
    assert "last/2 is written; the same command goes on from there" in capsys.readouterr().out
    assert "test/map_at_r" in loop.train(config, str(tmp_path))
