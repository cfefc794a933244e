"""What builds the site: the catalogue of losses, its formulas and pictures, and the check of links and resources."""

import importlib.util
import pathlib
import re
import sys
import types

import numpy as np
import pytest

from dml_jax import (
    data,
    distances,
    losses,
    miners,
    models,
    reducers,
    regularizers,
    relations,
    samplers,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def tool(name):
    sys.path.insert(0, str(DOCS / "tools"))
    try:
        spec = importlib.util.spec_from_file_location(name, DOCS / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.pop(0)


check, formulas, hooks, pictures = map(tool, ("check", "formulas", "hooks", "pictures"))

# Cells that say in words, or in code, what a formula would not.
NO_FORMULA = {"generic_pair", "fast_ap", "cross_batch_memory", "partial_fc", "self_supervised"}


def sections():
    text = hooks.catalogue((DOCS / "losses.md").read_text())
    parts = re.split(r"^### `(\w+)` .*$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_catalogue_has_a_section_for_each_loss():
    found = sections()
    assert sorted(found) == losses.available()
    for name, text in found.items():
        assert f"[Reference][dml_jax.losses.{name}]" in text
        assert (
            ("<math>" in text) or name in NO_FORMULA or "arc_face" in text or "revisiting" in name
        )


@pytest.mark.parametrize(
    "package",
    [data, distances, losses, miners, models, reducers, regularizers, relations, samplers],
    ids=lambda package: package.__name__,
)
def test_reference_has_every_name(package):
    """A name of `available()` is a documented function that the page of the package shows."""
    for name in package.available():
        # `sum_`, which would hide Python's.
        found = name if hasattr(package, name) else f"{name}_"
        factory = getattr(package, found)
        assert callable(factory) and factory.__doc__, name
        assert found in getattr(package, "__all__", [found])


def test_formula():
    text = formulas.mathml("log(1 + sum_p e^(-alpha (s_ap - base))) / alpha", ["alpha", "base"])
    plain = re.sub("<annotation.*</annotation>", "", text)
    assert re.sub("<[^>]+>", "", plain) == "log(1+∑pe−α(sap−base))/α"  # noqa: RUF001
    assert "<munder><mo largeop='false'>∑</mo><mrow><mi>p</mi></mrow></munder>" in text
    # A hyper-parameter is no letter with a subscript.
    assert "<mi>k_temperature</mi>" in formulas.mathml("1 / k_temperature", ["k_temperature"])
    assert "<msub><mi>k</mi>" in formulas.mathml("1 / k_y")


@pytest.mark.parametrize("text", ["1 - mean over p", "rows(sims)", "(1 + x", "a ? b"])
def test_not_a_formula(text):
    with pytest.raises(formulas.NotAFormulaError):
        formulas.mathml(text)


def test_links_to_results_lead_to_the_file_in_the_repository_and_to_a_page_on_the_site():
    text = "".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    # On GitHub the page that includes a result shows nothing.
    assert "(benchmarks_" not in text and len(hooks.RESULT.findall(text)) > 4
    for name in hooks.RESULT.findall(text):
        assert (ROOT / "benchmarks" / "results" / f"{name}.md").is_file()
        page = DOCS / f"benchmarks_{name}.md"
        assert page.read_text().strip() == f'--8<-- "benchmarks/results/{name}.md"'
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="benchmarks.md"))
    shown = hooks.on_page_markdown("[table](../benchmarks/results/step.md)", page)
    assert shown == "[table](benchmarks_step.md)"


def test_each_loss_has_a_picture_or_a_reason():
    drawn = {path.stem for path in (DOCS / "assets" / "losses").glob("*.svg")}
    assert drawn | set(pictures.LEFT_OUT) == set(losses.available())
    assert not drawn & set(pictures.LEFT_OUT)


def test_pictures_show_the_loss():
    positive, negative = pictures.values("contrastive")
    np.testing.assert_allclose(positive, np.sqrt(2 - 2 * pictures.GRID), atol=1e-5)
    # The positive at cosine 0.5 costs its distance, 1; a negative less than 1 away costs what is missing.
    hinge = np.maximum(1 - np.sqrt(2 - 2 * pictures.GRID), 0)
    np.testing.assert_allclose(negative, 1 + hinge, atol=1e-5)


PAGE = """<html><head><link rel="stylesheet" href="a.css"><script src="b.js"></script></head>
<body id="top"><h1 id="here">x</h1><a href="two.html#there">2</a><a href="https://example.org">out</a>
<img src="c.png"></body></html>"""


def site(folder, **files):
    files = {
        "one.html": PAGE,
        "two.html": '<p id="there">',
        "a.css": "",
        "b.js": "",
        "c.png": "",
    } | files
    for name, text in files.items():
        (folder / name).write_text(text)
    return check.faults(folder)


def test_a_good_site_has_no_faults(tmp_path):
    assert site(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"two.html": ""}, "one.html: links to two.html#there, where there is no such anchor"),
        (
            {"two.html": '<p id="there"><a href="no.html">'},
            "two.html: links to no.html, which is not there",
        ),
        (
            {"two.html": '<p id="there"><img src="no.png">'},
            "two.html: loads no.png, which is not there",
        ),
        (
            {"two.html": '<p id="there"><script src="https://cdn.example.org/x.js"></script>'},
            "two.html: loads https://cdn.example.org/x.js, which needs a network",
        ),
        (
            {"two.html": '<p id="there"><link rel="preconnect" href="//fonts.example.org">'},
            "two.html: loads //fonts.example.org, which needs a network",
        ),
        (
            {"a.css": "@font-face{src:url(https://example.org/f.woff2)}"},
            "a.css: loads https://example.org/f.woff2, which needs a network",
        ),
        (
            {"a.css": '@import "https://example.org/x.css";'},
            "a.css: loads https://example.org/x.css, which needs a network",
        ),
    ],
)
def test_faults_are_found(tmp_path, files, fault):
    assert site(tmp_path, **files) == [fault]
