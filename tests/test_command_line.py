"""What a command prints where it fails: one line for what a user can put right, a traceback for everything else."""

import errno
import json
import re
import shlex
import sys
import types

import pytest

from dml_jax import (
    UserError,
    __main__,
    command_line,
    config_fields,
    list_names,
    processes,
    run_folder,
    train,
)
from dml_jax import config as configs
from dml_jax.catalogue import KINDS, hyper_parameters


@pytest.fixture
def command():
    """Runs a command on a command line of its own; returns its exit status."""

    def run(main, *arguments, add_options=lambda parser: parser.add_workdir(), doc="Does it."):
        module = types.SimpleNamespace(main=main, add_options=add_options, __doc__=doc)
        try:
            command_line.run(module, arguments, "dml it")
        except SystemExit as stop:
            return stop.code
        return 0

    return run


def raising(error):
    def main(options):
        raise error

    return main


NEVER = raising(AssertionError("not called"))


def test_a_user_error_is_one_line(command, capsys):
    assert command(raising(UserError("alpha is -1;\n  accepted: 1")), "--workdir=x") == 1
    out = capsys.readouterr()
    assert out.err == "error: alpha is -1; accepted: 1\n" and out.out == ""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too many values to unpack"),
        OSError(5, "Input/output error"),
        KeyError("params"),
        TypeError("unhashable"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_defect_keeps_its_traceback(command, capsys, error):
    """An error of any other class is none of the user's, a ValueError raised in this very package included."""
    assert command(raising(error), "--workdir=x") == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert "in main" in err and type(error).__name__ in err


def test_an_internal_error_below_the_package_keeps_its_traceback(command, capsys, monkeypatch):
    monkeypatch.setattr(processes, "is_primary", lambda: int("seven"))
    assert command(lambda options: processes.is_primary(), "--workdir=x") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "ValueError: invalid literal for int()" in err


def test_a_full_disk_is_one_line(command, capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.csv")
    assert command(raising(full), "--workdir=x") == 1
    assert capsys.readouterr().err == "error: runs/a/metrics.csv: No space left on device\n"


def test_an_interrupt_is_no_traceback(command, capsys):
    assert command(raising(KeyboardInterrupt()), "--workdir=x") == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing: the folder of the run"),
        (["--workdir=x", "stray"], "'stray' is not an option; --name=value is accepted"),
        (["--workdri=x"], "unknown option '--workdri'; did you mean '--workdir'?"),
        (
            ["--workdir=x", "--config.train.epochs=3"],
            "unknown option '--config.train.epochs'; accepted: --help, --workdir",
        ),
    ],
)
def test_a_wrong_command_line(command, capsys, arguments, message):
    assert command(NEVER, *arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_paths_begin_at_home(command, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    seen = []
    assert command(lambda options: seen.append(options.workdir), "--workdir=~/runs") == 0
    assert seen == ["/home/me/runs"]


def with_config(parser):
    parser.add_workdir()
    parser.add_config("quickstart")


def test_help_lists_options_and_every_field(command, capsys):
    assert command(NEVER, "--help", add_options=with_config, doc="Does it well.") == 0
    text = capsys.readouterr().out
    assert "Does it well." in text and "--workdir FOLDER" in text
    default = configs.new()
    for section in ("train", "evaluation"):
        for field in default[section]:
            assert f"--config.{section}.{field}=" in text
    assert "--config.train.patience=3\n      evaluations without a better value" in text


def test_print_config(command, capsys):
    options = ["--workdir=x", "--config.train.epochs=2", "--print_config"]
    assert command(NEVER, *options, add_options=with_config) == 0
    assert json.loads(capsys.readouterr().out)["train"]["epochs"] == 2


def test_print_config_needs_nothing_else(command, capsys):
    assert command(NEVER, "--print_config", add_options=with_config) == 0
    assert json.loads(capsys.readouterr().out)["data"]["name"] == "glyphs"
    assert command(NEVER, add_options=with_config) == 2


def test_notes_are_printed(command, capsys):
    options = ["--workdir=x", "--config.loss=triplet_margin"]
    assert command(lambda options: None, *options, add_options=with_config) == 0
    err = capsys.readouterr().err
    assert "note: --config.loss=triplet_margin: alpha, base, beta of 'multi_similarity'" in err
    assert "note: the miner 'multi_similarity' stays" in err


def test_without_a_config_it_is_that_of_the_run(command, capsys, tmp_path):
    def of_run(parser):
        parser.add_workdir()
        parser.add_config()

    assert command(NEVER, f"--workdir={tmp_path}", add_options=of_run) == 2
    assert "config.json, and no --config; accepted: the folder of a run" in capsys.readouterr().err
    config = configs.new()
    config.train.epochs = 7
    (tmp_path / "config.json").write_text(json.dumps(configs.to_dict(config)))
    seen = []
    options = [f"--workdir={tmp_path}", "--config.train.log_steps=2"]
    assert command(lambda o: seen.append(o.config), *options, add_options=of_run) == 0
    assert (seen[0].train.epochs, seen[0].train.log_steps) == (7, 2)


def test_a_printed_command_can_be_pasted(monkeypatch, tmp_path):
    """With the Python that runs, by its shortest name; and as `dml` where a shell finds the one beside it."""

    def words(path):
        monkeypatch.setenv("PATH", str(path))
        return shlex.split(command_line.shell("evaluate", "--workdir=my run"))

    there = tmp_path / "env" / "bin"
    there.mkdir(parents=True)
    for name in ("python", "dml"):
        (there / name).write_text("")
        (there / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(there / "python"))
    module = ["-m", "dml_jax.evaluate", "--workdir=my run"]
    assert words("/nowhere") == [str(there / "python"), *module]
    assert words(there) == ["dml", "evaluate", "--workdir=my run"]
    (there / "dml").unlink()
    assert words(there) == ["python", *module]
    monkeypatch.chdir(tmp_path)
    assert words("/nowhere") == ["env/bin/python", *module]


def test_dml(monkeypatch, capsys):
    def dml(*arguments):
        monkeypatch.setattr(sys, "argv", ["dml", *arguments])
        try:
            __main__.main()
        except SystemExit as stop:
            return stop.code
        return 0

    assert dml() == dml("--help") == 0
    text = capsys.readouterr().out
    for name, module in __main__.COMMANDS.items():
        found = re.search(rf"^  {name} +(.+)$", text, flags=re.M)
        assert found and not found[1].endswith((":", "`")), (name, module)
    assert dml("trian") == 2
    assert "unknown command 'trian'; did you mean 'train'?" in capsys.readouterr().err
    assert dml("train", "--help") == 0
    assert "usage: dml train" in capsys.readouterr().out


def test_every_name_is_listed_with_its_hyper_parameters():
    for kind in KINDS.values():
        for name in kind.table:
            text = list_names.described(kind, name)
            assert text.startswith(f"{name}: ") and len(text.splitlines()[0]) > len(name) + 10
            for hyper, found in hyper_parameters(kind, name)[0].items():
                assert found.meaning, (name, hyper)


def test_the_page_of_fields_is_what_the_library_says(request):
    page = request.config.rootpath / "docs" / "config.md"
    assert page.read_text() == config_fields.as_markdown()


@pytest.mark.parametrize("text", ["two", "-1", ""])
def test_an_environment_that_is_no_number(monkeypatch, text):
    monkeypatch.setenv("JAX_NUM_PROCESSES", text)
    with pytest.raises(UserError, match=r"JAX_NUM_PROCESSES='.*'; a whole number is accepted"):
        processes._number(None, "JAX_NUM_PROCESSES")
    assert processes._number(3, "JAX_NUM_PROCESSES") == 3


@pytest.mark.parametrize("given", ["", "there"])
def test_where_training_says_that_its_checkpoints_are(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dml_jax.training.loop.train", lambda config, workdir: None)
    config = configs.new()
    config.train.checkpoints = given
    run_folder.write_config(tmp_path, configs.to_dict(config))
    parser = command_line.Parser("dml train")
    train.add_options(parser)
    train.main(parser.parse([f"--workdir={tmp_path}"]))
    printed = capsys.readouterr().out
    assert (f"; in {tmp_path}/there its checkpoints. Next: " in printed) == bool(given)
    assert ("tensorboard/, checkpoints/. Next: " in printed) == (not given)
