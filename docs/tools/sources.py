"""What the reference reads otherwise than griffe, which reads the source, does by itself."""

import re
from typing import Any

import griffe


class Sources(griffe.Extension):
    """Finds functions that lie in modules of their own names, and takes "Example:" for a section of doctests."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            # Else it is an admonition, whose text is no code.
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = text

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for package in [pkg, *pkg.modules.values()]:
            self.prefer_functions(package)

    def prefer_functions(self, package: griffe.Module) -> None:
        """Lets `samplers.m_per_class` be the function, as in Python, where griffe has the module of that name."""
        for name, path in list(package.imports.items()):
            module = package.members.get(name)
            inside = module.members.get(name) if isinstance(module, griffe.Module) else None
            if inside is not None and path == f"{package.path}.{name}.{name}":
                package.members[name] = griffe.Alias(name, inside, parent=package)
