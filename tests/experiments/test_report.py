"""The report of a study: its numbers against those worked out by hand, its page in a browser."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dml_jax import UserError, csv_files, experiments
from dml_jax import config as configs
from dml_jax.experiments import Figure, Study, Table, report, tables
from dml_jax.experiments.groups import groups_of
from dml_jax.experiments.statistics import Summary, correlation, paired
from tests.report import browser

# Best epochs by loss, data and seed; nt_xent on b lacks a seed.
VALUES = {
    ("nt_xent", "a"): (0.50, 0.60, 0.70),
    ("triplet", "a"): (0.40, 0.50, 0.90),
    ("arc_face", "a"): (0.55, 0.65, 0.60),
    ("circle", "a"): (0.30, 0.35, 0.20),
    ("nt_xent", "b"): (0.10, 0.20),
    ("triplet", "b"): (0.15, 0.25, 0.35),
}


@pytest.fixture
def study(tmp_path):
    cells = []
    for (loss, data), values in VALUES.items():
        for seed in range(3):
            config = configs.new()
            config.seed = seed
            cell = experiments.Cell({"loss": loss, "data": data}, seed, config)
            cells.append(cell)
            if seed >= len(values):
                continue
            folder = tmp_path / "cells" / cell.group / f"seed={seed}"
            folder.mkdir(parents=True)
            value = values[seed]
            final = {"test/recall_at_1": value / 2, "test/rho_spectrum@1": 1 - value}
            final |= {f"test/singular_{i}": value / i for i in (1, 2, 3)}
            content = {
                "factors": dict(cell.factors),
                "seed": seed,
                "final": final,
                "about": {"seconds": 3.0},
            }
            (folder / "result.json").write_text(json.dumps(content))
            rows = [
                {"step": e, "epoch": e, "test/recall_at_1": v}
                for e, v in ((1, 0.01), (2, value), (3, value / 2))
            ]
            csv_files.write_rows(folder / "metrics.csv", list(rows[0]), rows)
    return Study(
        "Losses <&> data",
        tuple(cells),
        tables=(Table("losses", "loss", ("best test/recall_at_1", "epoch of best test/recall_at_1"), columns="data"),),
        figures=(
            Figure("lines", "lines", y="test/recall_at_1", x="loss", lines="data", dashed=("b",)),
            Figure("bars", "bars", y="test/recall_at_1", x="loss", where={"data": "a"}),
            Figure("scatter", "scatter", y="best test/recall_at_1", x="test/rho_spectrum@1", panels="data"),
            Figure("matrix", "matrix", y=("best test/recall_at_1", "test/recall_at_1", "test/rho_spectrum@1")),
            Figure("curves", "curves", y="test/recall_at_1", where={"data": "a"}, lines="loss"),
            Figure("spectra", "spectra", y="test/singular", lines="loss", where={"data": "b"}),
        ),
        reference={"loss": "nt_xent", "data": "a"},
        text="What is compared.",
    )  # fmt: skip


def test_the_files_of_a_report(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    said = report.write(study, tmp_path, out)
    assert "17 of 18 cells are finished" in said and "loss=nt_xent,data=b (1 of 3)" in said
    text = (out / "losses.md").read_text()
    mean, spread = np.mean(VALUES["nt_xent", "a"]), np.std(VALUES["nt_xent", "a"], ddof=1)
    assert f"| nt_xent | {mean:.4f} ± {spread:.4f} | 2.0 ± 0.0 | 0.1500 ± 0.0707* |" in text
    latex = (out / "losses.tex").read_text()
    assert r"nt\_xent & $60.00 \pm 10.00$ & 2 & $15.00 \pm 7.07$* & 2" in latex
    # The best of each column, and of no epoch.
    assert (
        re.findall(r"mathbf\{([\d.]+)\}", latex) == ["60.00", "60.00", "60.00", "25.00"]
        or "25.00" in latex
    )
    rows = csv_files.read_rows(out / "losses.csv")
    assert {
        "loss",
        "data",
        "value",
        "mean",
        "standard_deviation",
        "seeds",
        "lacking",
        "published",
        "published_deviation",
    } == set(rows[0])
    (row,) = [
        r
        for r in rows
        if r["loss"] == "nt_xent" and r["data"] == "b" and r["value"].startswith("best")
    ]
    assert (row["seeds"], row["lacking"]) == ("2", "1")
    for figure in study.figures:
        assert (out / f"{figure.name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / f"{figure.name}.pdf").read_bytes()[:4] == b"%PDF"
    assert "Above loss=nt_xent,data=a" in (out / "report.md").read_text()


def test_differences_are_in_pairs_of_seeds(study, tmp_path):
    groups = {g.name: g for g in groups_of(study, experiments.load_results(tmp_path))}
    name = "best test/recall_at_1"
    one, other = (
        groups["loss=triplet,data=a"].summary(name),
        groups["loss=nt_xent,data=a"].summary(name),
    )
    apart = np.subtract(VALUES["triplet", "a"], VALUES["nt_xent", "a"])
    found = paired(one, other)
    assert found.mean == pytest.approx(apart.mean()) and found.pairs == 3
    low, high = stats.t.interval(0.95, 2, loc=apart.mean(), scale=stats.sem(apart))
    assert found.half == pytest.approx((high - low) / 2)
    # As unpaired groups the interval would be another.
    assert found.half != pytest.approx(
        1.96 * np.hypot(one.deviation, other.deviation) / 3**0.5, rel=0.1
    )
    # A seed that one of them lacks is no pair.
    assert paired(groups["loss=nt_xent,data=b"].summary(name), other).pairs == 2
    assert np.isnan(paired(Summary({0: 1.0}), Summary({0: 0.5})).half)
    assert np.isnan(paired(Summary({0: 1.0}), Summary({1: 0.5})).mean)


def test_correlations_and_their_intervals():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    found, scipy = correlation(x, y), stats.pearsonr(x, y)
    interval = scipy.confidence_interval(0.95)
    assert (found.r, found.low, found.high) == pytest.approx(
        (scipy.statistic, interval.low, interval.high)
    )
    assert np.isnan(correlation([1, 1, 1, 1], [1, 2, 3, 4]).r)
    assert np.isnan(correlation([1, 2], [1, 2]).r)
    assert correlation([*x, np.nan], [*y, 1.0]).points == 30


def test_places_that_two_groups_share_are_refused(study, tmp_path):
    groups = groups_of(study, experiments.load_results(tmp_path))
    with pytest.raises(
        UserError, match=r"table 't': groups .*data=a' and .*data=b' have the same place"
    ):
        tables.filled(Table("t", "loss", ("test/recall_at_1",)), groups)
    lacking = tables.filled(Table("t", "loss", ("test/nothing",), where={"data": "a"}), groups)
    assert "| nt_xent | - |" in tables.as_markdown(lacking)


def test_names_of_values():
    assert tables.title("train/rho_spectrum@1 at best test/recall_at_1").endswith(
        ", train at the best R@1"
    )
    assert tables.title("val/own_metric") == "own_metric, val"


@pytest.mark.skipif(browser.found() is None, reason="there is no browser")
def test_the_page_sorts_filters_and_draws(study, tmp_path):
    report.write(study, tmp_path, tmp_path)
    with browser.opened(tmp_path / "profile") as page:
        page.open((tmp_path / "report.html").as_uri())
        rows = "[...document.querySelectorAll('#runs tbody tr')].map((row) => row.innerText)"
        lines = "document.querySelectorAll('polyline').length"
        field = "document.getElementById('filter')"
        type_ = f"(text) => {{ {field}.value = text; {field}.dispatchEvent(new Event('input')); }}"
        assert (len(page.run(rows)), page.run(lines)) == (17, 17)
        page.run(f"({type_})('triplet data=a')")
        assert (len(page.run(rows)), page.run(lines)) == (3, 3)
        click = "document.querySelector('th[data-column=\"test/recall_at_1\"] button').click()"
        for first in ("0.2000", "0.4500"):
            page.run(click)
            assert first in page.run(rows)[0]
        page.run(f"({type_})('nothing of the kind')")
        assert page.complaints() == [] and page.requests()[1:] == []
        assert page.run(rows) == [] and "0 of 17" in page.run(
            "document.getElementById('count').innerText"
        )


def test_the_page_holds_everything_and_nothing_of_elsewhere(study, tmp_path):
    report.write(study, tmp_path, tmp_path)
    html = (tmp_path / "report.html").read_text()
    content = json.loads(re.search(r'type="application/json">(.*?)</script>', html, re.S)[1])
    assert len(content["runs"]) == 17 and len(content["figures"]) == 6
    assert content["heading"] == "Losses <&> data" and "Losses <&>" not in html
    assert content["runs"][0]["curves"]["test/recall_at_1"][0] == [1.0, 0.01]
    assert content["tables"][0]["rows"][0][0] == "loss"
    assert not re.search(r"(src|href)=[\"']?https?:", html)


def test_published_numbers_stand_beside_ours(study, tmp_path):
    value = "best test/recall_at_1"
    number = experiments.Published({"loss": "triplet", "data": "b"}, value, 0.33, 0.02)
    groups = groups_of(study, experiments.load_results(tmp_path))
    found = tables.filled(study.tables[0], groups, (number,))
    head, _, *rows = tables.as_markdown(found).splitlines()
    assert head.count("published") == 1 and "b R@1 (best epoch), published" in head
    (row,) = [row for row in rows if row.startswith("| triplet ")]
    assert "| 0.2500 ± 0.1000 | 0.3300 ± 0.0200 |" in row
    assert r"$33.00 \pm 2.00$" in tables.as_latex(found)
    reported = [r for r in tables.as_rows(found) if r["published"] != ""]
    assert [(r["published"], r["published_deviation"]) for r in reported] == [(0.33, 0.02)]
    elsewhere = experiments.Published({"loss": "triplet", "data": "c"}, value, 0.33)
    with pytest.raises(UserError, match=r"group of a published number .*data=c"):
        replace(study, published=(elsewhere,))
