"""`dml suggest`: what it prints can be used, and follows from classes and memory."""

import numpy as np
import pytest

from dml_jax import command_line, config_files, suggest
from tests.training.commands import pictures


def loaded(text, tmp_path):
    file = tmp_path / "suggested.py"
    file.write_text(text)
    return config_files.load(str(file))


@pytest.mark.parametrize(
    "classes, each, memory, devices, loss, batch, micro, m",
    [
        (1000, 10, 80, 1, "multi_similarity", 64, None, None),
        (1000, 10, 80, 8, "multi_similarity", 512, None, 4),
        (1000, 3, 80, 8, "multi_similarity", 512, None, 2),
        (20, 50, 80, 8, "cos_face", 128, None, None),
        (5000, 1, 80, 8, "cos_face", 128, None, None),
        (200, 30, 24, 1, "multi_similarity", 256, 64, 4),
    ],
)  # fmt: skip
def test_what_follows_from_data_and_machine(
    classes, each, memory, devices, loss, batch, micro, m, tmp_path
):
    config = loaded(suggest.suggestion("photos", np.full(classes, each), memory, devices), tmp_path)
    assert config.loss.name == loss
    if loss == "cos_face":
        assert config.train.batch_size <= 128
        return
    assert config.train.batch_size >= 256 and config.train.batch_size <= classes * config.sampler.m
    assert m in (None, config.sampler.m)
    assert (config.train.micro_batch is not None) == (micro is not None) or devices == 1


def test_noisy_labels_and_few_classes(tmp_path):
    noisy = loaded(suggest.suggestion("photos", np.full(500, 8), 80, 8, noisy=True), tmp_path)
    assert noisy.loss.name == "nt_xent"
    few = loaded(suggest.suggestion("photos", np.full(6, 8), 80, 1, holds_out=False), tmp_path)
    assert few.evaluation.splits == () and few.train.monitor == "" and few.data.fractions[1] == 0


def test_the_command(tmp_path, capsys):
    photos = pictures(tmp_path / "photos", classes=30, images=4)
    command_line.run(suggest, [f"--path={photos}", f"--out={tmp_path / 's.py'}", "--memory=16"])
    said = capsys.readouterr().out
    # Fifteen classes of the usual split are too few to hold some out; the reasons count the split that is suggested.
    assert "images of 18 training classes" in said
    config = config_files.load(str(tmp_path / "s.py"))
    assert tuple(config.data.fractions) == (0.6, 0.0, 0.4)
    assert config.data.path == str(photos)
    with pytest.raises(SystemExit):
        command_line.run(suggest, [f"--path={photos}", "--memory=0"])
    assert "--memory=0" in capsys.readouterr().err
