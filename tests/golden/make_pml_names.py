"""Writes pml_names.json: the classes of PyTorch Metric Learning with their parameters and defaults.

    pip download --no-deps pytorch-metric-learning==2.9.0 && unzip pytorch_metric_learning-*.whl
    python tests/golden/make_pml_names.py pytorch_metric_learning

It reads the source, so that neither PyTorch nor the library itself has to be installed.
"""

import ast
import json
import pathlib
import sys

KINDS = (
    "losses",
    "miners",
    "samplers",
    "distances",
    "reducers",
    "regularizers",
    "testers",
    "trainers",
)


def exported(package: pathlib.Path) -> list[str]:
    tree = ast.parse((package / "__init__.py").read_text())
    return sorted(
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    )


def classes(package: pathlib.Path) -> dict[str, ast.ClassDef]:
    return {
        node.name: node
        for path in sorted(package.glob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }


def parameters(node: ast.ClassDef, constants: dict[str, str]) -> dict[str, object]:
    """The parameters of a class's own __init__ with their defaults; "required" where there is none."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            names = [a.arg for a in part.args.args][1:]
            defaults = [value(d, constants) for d in part.args.defaults]
            found = dict(
                zip(names, ["required"] * (len(names) - len(defaults)) + defaults, strict=True)
            )
            for argument, default in zip(part.args.kwonlyargs, part.args.kw_defaults, strict=True):
                found[argument.arg] = "required" if default is None else value(default, constants)
            return found
    return {}


def value(node: ast.expr, constants: dict[str, str]) -> object:
    if isinstance(node, ast.Name):
        return constants.get(node.id, node.id)
    return ast.literal_eval(node)


def main() -> None:
    root = pathlib.Path(sys.argv[1])
    # The strategies of BatchEasyHardMiner.
    constants = {name: name.lower() for name in ("EASY", "HARD", "SEMIHARD", "ALL")}
    found = {}
    for kind in KINDS:
        known = classes(root / kind)
        found[kind] = {name: parameters(known[name], constants) for name in exported(root / kind)}
    out = pathlib.Path(__file__).with_name("pml_names.json")
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
