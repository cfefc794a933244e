"""Writes docs/config.md from the docstrings of the library: `python docs/tools/config.py`."""

import pathlib

from dml_jax import config_fields

PAGE = pathlib.Path(__file__).resolve().parents[1] / "config.md"

if __name__ == "__main__":
    PAGE.write_text(config_fields.as_markdown(), encoding="utf-8")
