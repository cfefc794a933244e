"""What a command prints where it fails: one line for what a user can put right, a traceback for everything else."""

import sys

import pytest
from absl import flags

from dml_jax import UserError, command_line, processes


@pytest.fixture
def command(monkeypatch):
    """Runs a command on a command line of its own; returns its exit status."""

    def run(main, *arguments, **accepted):
        with monkeypatch.context() as patch:
            patch.setattr(flags, "FLAGS", flags.FlagValues())
            patch.setattr(command_line.flags, "FLAGS", flags.FLAGS)
            flags.DEFINE_string("workdir", None, "", flag_values=flags.FLAGS)
            patch.setattr(sys, "argv", ["command", *arguments])
            try:
                command_line.run(main, **accepted)
            except SystemExit as stop:
                return stop.code
            return 0

    return run


def raising(error):
    def main():
        raise error

    return main


def test_a_user_error_is_one_line(command, capsys):
    assert command(raising(UserError("alpha is -1;\n  accepted: 1")), "--workdir=x") == 1
    out = capsys.readouterr()
    assert out.err == "error: alpha is -1; accepted: 1\n" and out.out == ""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too many values to unpack"),
        OSError(28, "No space left on device"),
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
    assert command(lambda: processes.is_primary(), "--workdir=x") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "ValueError: invalid literal for int()" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing: the folder of the run"),
        (["--workdir=x", "stray"], "'stray' is not an option; --name=value is accepted"),
        (["--workdri=x"], "Unknown command line flag 'workdri'. Did you mean: workdir ?"),
    ],
)
def test_a_wrong_command_line(command, capsys, arguments, message):
    assert command(raising(AssertionError("not called")), *arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_arguments_that_are_no_options(command):
    seen = []
    assert command(lambda *given: seen.extend(given), "--workdir=x", "a", "b", positional=True) == 0
    assert seen == ["a", "b"]


def test_help(command, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Trains a model.")
    assert command(raising(AssertionError("not called")), "--help") == 0
    assert capsys.readouterr().out == "Trains a model.\n"


@pytest.mark.parametrize("text", ["two", "-1", ""])
def test_an_environment_that_is_no_number(monkeypatch, text):
    monkeypatch.setenv("JAX_NUM_PROCESSES", text)
    with pytest.raises(UserError, match=r"JAX_NUM_PROCESSES='.*'; a whole number is accepted"):
        processes._number(None, "JAX_NUM_PROCESSES")
    assert processes._number(3, "JAX_NUM_PROCESSES") == 3
