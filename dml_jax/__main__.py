"""The command `dml`: `dml train`, `dml evaluate`, ...; `python -m dml_jax` is the same.

Each command is also a module, as in `dml train`.
"""

import ast
import importlib
import importlib.util
import pathlib
import sys

from dml_jax import names
from dml_jax.errors import UserError

# The commands, by the modules that they are.
COMMANDS = {
    "quickstart": "dml_jax.quickstart",
    "train": "dml_jax.train",
    "evaluate": "dml_jax.evaluate",
    "embed": "dml_jax.embed",
    "search": "dml_jax.search",
    "export": "dml_jax.export",
    "inspect": "dml_jax.inspect_data",
    "prepare": "dml_jax.prepare",
    "list": "dml_jax.list_names",
    "suggest": "dml_jax.suggest",
    "study": "dml_jax.experiments.run",
    "tune": "dml_jax.experiments.tune",
    "report": "dml_jax.experiments.report",
    "toy": "dml_jax.revisiting.toy",
}


def usage() -> str:
    """Returns what `dml --help` prints: the commands with the first sentence of each module."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {_summary(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        ["usage: dml COMMAND ...", "", *lines, "", "`dml COMMAND --help` lists its options."]
    )


def _summary(module: str) -> str:
    """Returns what a module's docstring begins with; the module, which may take seconds, is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ImportError(f"no module {module}")
    text = ast.get_docstring(ast.parse(pathlib.Path(found.origin).read_text(encoding="utf-8")))
    return (text or "").partition(": `")[0].partition("\n")[0]


def main() -> None:
    """Runs the command that the command line names."""
    name, arguments = next(iter(sys.argv[1:2]), "--help"), sys.argv[2:]
    if name in ("--help", "-h", "help"):
        print(usage())
        return
    if name == "--version":
        from dml_jax import __version__

        print(f"dml_jax {__version__}")
        return
    if name not in COMMANDS:
        error: UserError = names.unknown("command", name, COMMANDS)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # As `python -m` has it: modules of one's own in the current folder are found.
    if "" not in sys.path:
        sys.path.insert(0, "")
    from dml_jax import command_line  # it imports jax

    command_line.run(importlib.import_module(COMMANDS[name]), arguments, f"dml {name}")


if __name__ == "__main__":
    main()
