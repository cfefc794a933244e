"""What docstrings say of arguments and attributes, for `--help` and `dml list`: it is written in one place."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any


def summary(of: Callable[..., Any]) -> str:
    """Returns the first sentence or paragraph of a docstring, on one line.

    Args:
      of: a function, a class or a module.

    >>> summary(summary)
    'Returns the first sentence or paragraph of a docstring, on one line.'
    """
    of = of.func if isinstance(of, functools.partial) else of
    paragraph = (inspect.getdoc(of) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def entries(of: Callable[..., Any], section: str = "Args") -> dict[str, str]:
    """Returns what a section of a docstring says of each name, each on one line.

    Args:
      of: a function or a class.
      section: the section's title, `Args` or `Attributes`.

    >>> entries(entries)["section"]
    "the section's title, `Args` or `Attributes`."
    """
    text = inspect.getdoc(of) or ""
    found = re.search(rf"^{section}:\n((?:[ ]+.*\n|\n)*)", text + "\n", flags=re.M)
    meanings: dict[str, str] = {}
    name = ""
    for line in found[1].splitlines() if found else ():
        begins = re.match(r"  (\*{0,2}\w+): (.*)", line)
        if begins:
            name = begins[1]
            meanings[name] = begins[2]
        elif name and line.strip():
            meanings[name] += f" {line.strip()}"
    return meanings
