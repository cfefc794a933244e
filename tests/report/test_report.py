"""What a report computes, against naive forms; and its page, in a real browser."""

import csv
import json
import re

import numpy as np
import pytest

from dml_jax import evaluation, report
from dml_jax.report import charts, distances, summary, write
from dml_jax.report import page as pages
from tests.report import browser

# Unbalanced: one class of one, one of two, and a name that would break a page that does not escape it.
NAMES = ("apple", "</script><b>", "pear & 'plum'", "lone", "fig")
LABELS = np.array([0] * 12 + [1] * 2 + [2] * 9 + [3] + [4] * 6)
COUNT = len(LABELS)


def clustered(seed=0, dim=5):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(NAMES), dim))
    found = centres[LABELS] + 0.8 * rng.normal(size=(COUNT, dim))
    # Duplicates, of one class and of two, and a zero vector.
    found[3], found[15], found[20] = found[0], found[1], 0
    return found.astype(np.float32)


def picture(i):
    """Grey, colour, small, large, flat, tall."""
    rng = np.random.default_rng(i)
    shape = [(20, 20, 1), (300, 200, 3), (28, 28, 3)][i % 3]
    return rng.integers(0, 256, shape).astype(np.uint8)


def written(folder, **options):
    data = report.ReportData(clustered(), LABELS, picture, "image {}.png".format, NAMES)
    metrics = ("map_at_r", "recall_at_1", "eer")
    rows = {
        "best, step 3": evaluation.evaluate_embeddings(data.embeddings, LABELS, metrics=metrics)
    }
    facts = {"run": "runs/<a>", "loss": "margin"}
    return report.write_report(data, rows, folder, heading="A <set> & more", facts=facts, **options)


def test_query_scores():
    hits = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1], [1, 0, 1]], bool)
    found = summary.query_scores(hits, np.array([2, 4, 3, 3, 0]))
    # By hand: the third neighbour does not count where R = 2.
    np.testing.assert_allclose(found, [1 / 2, 0, (1 / 2 + 2 / 3) / 3, 1, np.nan])


def test_query_scores_are_map_at_r():
    """Where k reaches every R, their mean is the metric."""
    vectors = clustered()
    _, ids = evaluation.neighbours(
        vectors, vectors, 11, query_ids=np.arange(COUNT), gallery_ids=np.arange(COUNT)
    )
    relevant = np.bincount(LABELS)[LABELS] - 1
    scores = summary.query_scores(LABELS[ids] == LABELS[:, None], relevant)
    assert np.isnan(scores).sum() == 1
    expected = evaluation.evaluate_embeddings(vectors, LABELS, metrics=["map_at_r"])["map_at_r"]
    assert abs(np.nanmean(scores) - expected) < 1e-12


def test_class_scores():
    found = summary.class_scores(
        np.array([7, 2, 7, 2, 9]),
        np.array([True, False, False, False, True]),
        np.array([0.5, 0.25, 1.0, np.nan, np.nan]),
    )
    np.testing.assert_array_equal(found.labels, [2, 7])
    np.testing.assert_array_equal(found.queries, [1, 2])
    np.testing.assert_array_equal(found.recall, [0, 0.5])
    np.testing.assert_array_equal(found.precision, [0.25, 0.75])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("anchors", [None, [1, 20, 23]])
def test_distance_histograms(monkeypatch, distance, anchors):
    vectors = clustered()
    monkeypatch.setattr(summary, "CHUNK", 3 * COUNT)  # several blocks
    found = report.distance_histograms(vectors, LABELS, anchors=anchors, distance=distance, bins=7)
    pairs = {True: [], False: []}
    for i in range(COUNT) if anchors is None else anchors:
        for j in range(COUNT):
            a, b = vectors[i].astype(np.float64), vectors[j].astype(np.float64)
            if distance == "euclidean":
                far = np.linalg.norm(a - b)
            else:
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                far = 1 - a @ b / norm if norm else 1.0
            if i != j:
                pairs[bool(LABELS[i] == LABELS[j])].append(far)
    edges = np.linspace(0, max(map(max, pairs.values())), 8)
    np.testing.assert_allclose(found.edges, edges, rtol=1e-6)
    for counts, same in ((found.intra, True), (found.inter, False)):
        assert counts.sum() == len(pairs[same])
        # The largest of all may lie on either side of the last edge by rounding.
        inside = np.minimum(pairs[same], edges[-1])
        np.testing.assert_array_equal(counts, np.histogram(inside, edges)[0])


def test_principal_axes(monkeypatch):
    monkeypatch.setattr("dml_jax.evaluation.spectrum.BLOCK", 7)
    vectors = clustered().astype(np.float64)
    mean, directions, variances = evaluation.principal_axes(vectors)
    centred = vectors - vectors.mean(axis=0)
    _, singular, rows = np.linalg.svd(centred)
    np.testing.assert_allclose(mean, vectors.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(variances * COUNT), singular, rtol=1e-6)
    np.testing.assert_allclose(np.abs(rows @ directions), np.eye(5), atol=1e-5)
    assert (directions[np.abs(directions).argmax(axis=0), np.arange(5)] > 0).all()
    places = report.embedding_map("pca", vectors)
    np.testing.assert_allclose(places, centred @ directions[:, :2], atol=1e-5)
    np.testing.assert_array_equal(report.embedding_map("pca", np.ones((4, 1))), 0)


def test_maps_that_cannot_be():
    with pytest.raises(ValueError, match="unknown map 'tsn'; did you mean 'tsne'"):
        report.embedding_map("tsn", clustered())
    pytest.importorskip("sklearn", reason="the extra `map` is not installed")
    with pytest.raises(ValueError, match="10 or more"):
        report.embedding_map("tsne", clustered()[:9])


def test_tsne():
    pytest.importorskip("sklearn", reason="the extra `map` is not installed")
    places = report.embedding_map("tsne", clustered())
    assert places.shape == (COUNT, 2) and np.isfinite(places).all()
    np.testing.assert_array_equal(places, report.embedding_map("tsne", clustered()))


def test_tsne_needs_a_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"dml_jax\[map\].*'pca'"):
        report.embedding_map("tsne", clustered())


def test_rates_chart():
    """Places by hand: a decade is the same width everywhere, and 0 is where the line begins."""
    far, tar = np.array([0, 0, 0.01, 0.1, 1]), np.array([0, 0.25, 0.5, 0.75, 1])
    chart = charts.rates(far, tar, title="t", across="a", up="u")
    points = re.search(r'<polyline[^>]*points="([^"]*)"', chart)[1].split()
    x, y = np.array([list(map(float, point.split(","))) for point in points]).T
    width = charts.WIDTH - charts.LEFT - charts.RIGHT
    decades = np.array([0, 1, 2, 3]) / 3
    np.testing.assert_allclose(x, charts.LEFT + width * decades, atol=0.06)
    height = charts.HEIGHT - charts.TOP - charts.BOTTOM
    share = (charts.HEIGHT - charts.BOTTOM - y) / height
    np.testing.assert_allclose(share, tar[1:], atol=1e-3)
    assert re.findall(r'class="across"[^>]*>([^<]*)<', chart) == ["0.001", "0.01", "0.1", "1"]
    # Nothing reached at 0: the line begins at the first rate.
    later = charts.rates(far[2:], tar[2:], title="t", across="a", up="u")
    assert len(re.search(r'points="([^"]*)"', later)[1].split()) == 3


def test_thumbnails():
    large = pages.thumbnail(picture(1))
    assert large.startswith("data:image/jpeg;base64,") and len(large) < 20_000
    flat = pages.thumbnail(np.zeros((50, 40, 1), np.uint8))
    assert flat.startswith("data:image/png;base64,") and len(flat) < 200
    one = len(pages.thumbnail(picture(0)))
    found = pages.thumbnails([0, 3, 0, 6], picture, characters=2 * one + one // 2)
    assert list(found) == [0, 3]
    assert pages.thumbnails([5], lambda i: None) == {}


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_files(tmp_path):
    files = written(tmp_path / "new")
    names = ["best.png", "random.png", "worst.png", "classes.csv", "report.html"]
    assert [file.name for file in files] == names
    with files[3].open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["class"] for line in lines] == [NAMES[c] for c in (0, 1, 2, 4)]
    assert [line["queries"] for line in lines] == ["12", "2", "9", "6"]
    again = written(tmp_path / "again")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(files, again, strict=True))

    page = data_of(files[-1])
    assert set(page["items"]) == set(page["pictures"]) == {str(i) for i in range(COUNT)}
    vectors = clustered()
    for key, item in page["items"].items():
        far = np.linalg.norm(vectors - vectors[int(key)], axis=1).astype(np.float64)
        far[int(key)] = np.inf
        np.testing.assert_allclose([v for _, v in item["near"]], np.sort(far)[:9], atol=1e-4)
        assert int(key) not in [other for other, _ in item["near"]]
    rates = evaluation.evaluate_embeddings(vectors, LABELS, metrics=("tar@far=0.001", "auc", "eer"))
    text = files[-1].read_text(encoding="utf-8")
    for words in (
        f"accepted, {rates['tar@far=0.001']:.1%} of those",
        f"area under the curve is {rates['auc']:.4f}, the equal error rate {rates['eer']:.4f}",
    ):
        assert words in text

    galleries = {heading: queries for heading, _, queries in page["galleries"]}
    worst, best = (
        [float(page["items"][str(q)]["note"].split()[-1]) for q in galleries[f"{kind} queries"]]
        for kind in ("Worst", "Best")
    )
    assert worst == sorted(worst) and best == sorted(best, reverse=True) and best[0] > worst[0]
    assert len({LABELS[q] for q in galleries["Best queries"]}) == len(best)


def test_a_gallery_with_distractors(tmp_path):
    """Queries are searched for in the gallery alone; a distractor is nobody's class, nor another distractor's."""
    vectors = clustered()
    queries, gallery = (
        np.arange(0, COUNT, 3),
        np.setdiff1d(np.arange(COUNT), np.arange(0, COUNT, 3)),
    )
    labels = np.where(LABELS == 4, -1, LABELS)
    assert (labels[gallery] == -1).sum() > 1 and (labels[queries] == -1).any()
    queries = queries[labels[queries] >= 0]
    options = {"queries": queries, "gallery": gallery}
    data = report.ReportData(vectors, labels, picture, "image {}.png".format, NAMES, **options)
    files = report.write_report(data, {"x": {}}, tmp_path, heading="x", about="in <a> gallery")
    text, page = files[-1].read_text(encoding="utf-8"), data_of(files[-1])
    assert "in &lt;a&gt; gallery. What follows" in text
    assert f"{len(queries)} queries, {len(gallery)} images searched" in text
    shown = {q for _, _, rows in page["galleries"] for q in rows}
    assert shown <= set(queries.tolist())
    for i in shown:
        far = np.linalg.norm(vectors[gallery] - vectors[i], axis=1).astype(np.float64)
        near = page["items"][str(i)]["near"]
        assert {j for j, _ in near} <= set(gallery.tolist())
        np.testing.assert_allclose([v for _, v in near], np.sort(far)[:9], atol=1e-4)
    apart = [item for key, item in page["items"].items() if labels[int(key)] == -1]
    assert len(apart) > 1 and len({item["label"] for item in apart}) == len(apart)
    assert {item["kind"] for item in apart} == {"(distractor)"}
    # Average precision by hand: R is what the gallery has of the class.
    found = {}
    for i in queries:
        order = gallery[
            np.argsort(np.linalg.norm(vectors[gallery] - vectors[i], axis=1), kind="stable")
        ]
        r = np.sum(labels[gallery] == labels[i])
        hits = labels[order[: min(r, 9)]] == labels[i]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        if r:
            found.setdefault(NAMES[labels[i]], []).append(np.sum(precision * hits) / len(hits))
    with files[-2].open(newline="", encoding="utf-8") as file:
        lines = {line["class"]: line for line in csv.DictReader(file)}
    assert lines.keys() == found.keys()
    for name, values in found.items():
        assert float(lines[name]["average_precision"]) == pytest.approx(np.mean(values), abs=1e-6)


def test_a_large_set_is_sampled(tmp_path, monkeypatch):
    """Fewer queries, points, anchors, lists and pictures than the set has, and the page says so."""
    for name, value in {
        "SCORED": 20,
        "POINTS": 15,
        "ANCHORS": 9,
        "QUERIES": 2,
        "LISTED": 12,
    }.items():
        monkeypatch.setattr(write, name, value)
    monkeypatch.setattr(write, "NEIGHBOURS", 3)
    monkeypatch.setattr(pages, "CHARACTERS", 30_000)
    path = written(tmp_path)[-1]
    text, page = path.read_text(encoding="utf-8"), data_of(path)
    for words in ("20 queries drawn at random", "9 images drawn at random"):
        assert words in text
    # The queries of the galleries are on the map, whatever was drawn.
    dots = set(map(int, re.findall(r'<circle [^>]*data-item="(\d+)"', text)))
    assert {q for _, _, queries in page["galleries"] for q in queries} <= dots
    assert 15 <= len(dots) < 22 and f"{len(dots)} of 30 images, drawn at random, with all" in text
    listed = [key for key, item in page["items"].items() if item["near"] is not None]
    assert len(listed) == 12
    assert f"{len(page['pictures'])} pictures, and the neighbours of 12 images" in text
    assert 0 < len(page["pictures"]) < len(page["items"])
    assert sum(map(len, page["pictures"].values())) <= 30_000
    vectors = clustered()
    for key in listed:
        far = np.linalg.norm(vectors - vectors[int(key)], axis=1)
        far[int(key)] = np.inf
        near = [v for _, v in page["items"][key]["near"]]
        np.testing.assert_allclose(near, np.sort(far)[:3], atol=1e-4)


def test_sets_without_classes_to_find(tmp_path):
    data = report.ReportData(clustered()[:4], np.arange(4), picture, str, NAMES)
    rows = {"all": {"map_at_r": float("nan"), "eer": float("nan")}}
    files = report.write_report(data, rows, tmp_path, heading="x")
    assert [file.name for file in files] == ["random.png", "classes.csv", "report.html"]
    page = files[-1].read_text()
    assert "No class has two images" in page and "ROC of one threshold" not in page
    one = report.ReportData(clustered()[:1], LABELS[:1], picture, str, NAMES)
    with pytest.raises(ValueError, match="1 image has no neighbours; accepted: two or more"):
        report.write_report(one, {}, tmp_path, heading="x")


def test_verification_is_computed_only_where_it_is_asked_for(tmp_path, monkeypatch):
    data = report.ReportData(clustered(), LABELS, None, str, NAMES)
    verify, calls = distances.roc.verify, []
    monkeypatch.setattr(distances.roc, "verify", lambda *a, **k: calls.append(1) or verify(*a, **k))
    for metric, expected in (("map_at_r", 0), ("tar@far=0.01", 1)):
        [*_, page] = report.write_report(data, {"all": {metric: 0.5}}, tmp_path, heading="x")
        assert len(calls) == expected
        assert ("ROC of one threshold" in page.read_text()) == expected
        assert ("Distances and spectrum" in page.read_text()) != expected


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """The page in a browser, which stays open for the tests of this file."""
    if browser.found() is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is on the PATH")
    folder = tmp_path_factory.mktemp("report")
    address = written(folder)[-1].as_uri()
    with browser.opened(folder / "profile") as page:
        page.size(1400, 900)
        page.open(address)
        page.address = address
        yield page


KEY = "document.querySelector('#look .picked dd').textContent"


def test_page_draws_everything_alone(tab):
    tab.open(tab.address)
    assert tab.complaints() == []
    assert tab.requests() == [tab.address]
    assert tab.run("document.title") == "A <set> & more"
    assert tab.run("document.querySelector('.facts').innerText").split("\n") == [
        "run",
        "runs/<a>",
        "loss",
        "margin",
    ]
    headings = tab.run("[...document.querySelectorAll('main h2')].map(e => e.textContent)")
    assert headings == [
        "Metrics",
        "Worst queries",
        "Random queries",
        "Best queries",
        "Map",
        "Distances, ROC and spectrum",
        "Classes",
    ]
    assert "MAP@R" in tab.run("document.querySelector('main table').textContent")
    # Every picture decodes, and says what it is.
    images = tab.run(
        "Promise.all([...document.images].map(i => i.decode().then(() => [i.naturalWidth, i.alt])))"
    )
    assert len(images) > 100 and all(width > 0 and alt for width, alt in images)
    assert tab.run("document.querySelectorAll('svg[role=img]:not([aria-label])').length") == 0
    charts_drawn = "document.querySelectorAll('figure svg.chart').length"
    assert tab.run(charts_drawn) == 5
    # The line of the ROC is drawn, inside of its chart, and from left to right.
    box = tab.run(
        "(e => { const b = e.getBBox(); return [b.x, b.y, b.width, b.height]; })("
        "document.querySelector('svg[aria-label^=Receiver] polyline'))"
    )
    assert box[0] >= 57 and box[0] + box[2] <= 507 and box[2] > 300 and 50 < box[3] < 230
    # Names are text, whatever is in them.
    assert tab.run("document.querySelectorAll('b').length") == 0
    assert "</script><b>" in tab.run("document.body.textContent")


def test_page_from_query_to_neighbours_and_on(tab):
    tab.open(tab.address)
    page = tab.run("data.items")
    seen = []
    tab.click("#galleries .row:nth-of-type(2) .tile")
    for _ in range(3):
        key = tab.run("location.hash").removeprefix("#item-")
        seen.append(key)
        assert tab.run(KEY) == page[key]["name"]
        shown = tab.run("[...document.querySelectorAll('#look .tiles a')].map(e => e.hash)")
        assert shown == [f"#item-{other}" for other, _ in page[key]["near"]]
        marks = tab.run("[...document.querySelectorAll('#look .tiles a')].map(e => e.className)")
        for (other, _), mark in zip(page[key]["near"], marks, strict=True):
            assert (
                mark
                == f"tile {'right' if page[str(other)]['label'] == page[key]['label'] else 'wrong'}"
            )
        assert tab.run("document.querySelector('circle.here').dataset.item") == key
        assert tab.run("document.querySelectorAll('circle.near').length") == len(shown)
        # From a neighbour to its own neighbours.
        tab.click("#look .tiles li:nth-child(2) a")
    assert len(set(seen)) > 1
    tab.run("history.back()")
    tab.run("new Promise(done => setTimeout(done, 200))")
    assert tab.run(KEY) == page[seen[-1]]["name"]
    assert tab.run("document.querySelector('#look dd').innerHTML").count("<wbr>") == 2
    # The points of the map lead there, too.
    tab.click("circle[data-item='23']")
    assert tab.run(KEY) == "image 23.png"
    assert tab.run("document.querySelector('.said').textContent") == "lone: image 23.png"


def test_page_by_keyboard(tab):
    tab.open(tab.address)
    tab.run("document.querySelector('#look-heading').focus()")
    tab.press("Tab", 9)
    tab.press("Tab", 9)
    target = tab.run("document.activeElement.hash")
    assert target.startswith("#item-")
    tab.press("Enter", 13)
    assert tab.run("location.hash") == target
    assert tab.run(KEY) == tab.run(f"data.items[{target.removeprefix('#item-')}].name")
    assert tab.run("document.activeElement.id") == "look-heading"


def test_map_by_keyboard(tab):
    """Arrows lead from dot to dot, each of them can be reached, and Enter opens its neighbours."""
    tab.open(tab.address)
    tab.run("document.querySelector('.dots').focus()")
    active = "document.querySelector('circle.active').dataset.item"
    seen = {tab.run(active)}
    for key, code in (("Home", 36), ("ArrowRight", 39), ("ArrowUp", 38), ("ArrowLeft", 37)):
        tab.press(key, code)
        seen.add(tab.run(active))
        item = tab.run(active)
        assert (
            tab.run("document.querySelector('.dots').getAttribute('aria-activedescendant')")
            == f"dot-{item}"
        )
        assert tab.run("document.querySelector('.said').textContent").endswith(f"image {item}.png")
    assert len(seen) > 2
    tab.press("Enter", 13)
    assert tab.run(KEY) == f"image {item}.png"
    # From any dot, the arrows lead to all others.
    reached = tab.run(
        """(() => {
          const group = document.querySelector(".dots"), found = new Set();
          const press = (key) => group.dispatchEvent(new KeyboardEvent("keydown", {key, cancelable: true}));
          const keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
          press("Home");
          let x = 1;
          for (let i = 0; i < 4000; i++) {
            x = (x * 48271) % 2147483647;
            press(keys[x % 4]);
            found.add(document.querySelector("circle.active").dataset.item);
          }
          return found.size;
        })()"""
    )
    assert reached == COUNT


def test_map_colours(tab):
    tab.open(tab.address)
    fills = "[...document.querySelectorAll('circle')].map(e => [e.dataset.class, e.dataset.right, e.style.fill])"
    assert {fill for _, _, fill in tab.run(fills)} == {""}
    tab.run("document.querySelector('input[value=class]').click()")
    by_class = {}
    for kind, _, fill in tab.run(fills):
        by_class.setdefault(kind, set()).add(fill)
    assert all(len(found) == 1 for found in by_class.values())
    assert len({fill for found in by_class.values() for fill in found}) == len(NAMES)
    tab.run("document.querySelector('input[value=right]').click()")
    found = {(right, fill) for _, right, fill in tab.run(fills)}
    assert {("1", "var(--right)"), ("0", "var(--wrong)")} == found


def test_page_on_a_telephone(tab):
    """Metrics come first, what is picked opens where it was picked, and what does not fit says so."""
    tab.size(390, 800)
    tab.open(tab.address)
    assert tab.run("document.querySelector('main section h2').textContent") == "Metrics"
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert tab.run(top.format("main section")) < tab.run(top.format("#look"))
    tab.click("#galleries .row:nth-of-type(2) .tile")
    assert tab.run("document.querySelector('#look').previousElementSibling.className") == "row"
    assert tab.run("scrollY") > 300
    assert 0 <= tab.run(top.format("#look-heading")) < 800
    assert tab.run("document.documentElement.scrollWidth") <= 390
    # A tap beside a dot takes the nearest one.
    tab.run("document.querySelector('svg .dots').scrollIntoView({block: 'center'})")
    box = tab.run(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector(\"circle[data-item='23']\")"
        ".getBoundingClientRect())"
    )
    tab.ask(
        "Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": box[0], "y": box[1] + 3}]
    )
    tab.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    tab.run("new Promise(done => setTimeout(done, 500))")
    assert tab.run(KEY) == "image 23.png"
    tab.size(1400, 900)
    tab.settle()
    assert tab.run("document.querySelector('#columns').firstElementChild.id") == "look"


def test_a_long_name_pushes_nothing_away(tab):
    tab.size(390, 800)
    tab.open(tab.address)
    tab.run(
        "document.querySelectorAll('main th[scope=row]').forEach(e => { e.textContent = 'n'.repeat(200); }); tables()"
    )
    assert tab.run("document.documentElement.scrollWidth") <= 390
    edge = tab.run("document.querySelector('main td').getBoundingClientRect().right")
    assert edge <= 390
    # What still does not fit says so, and can be scrolled with keys.
    wide = tab.run(
        "[...document.querySelectorAll('.scrolls')].map(e => [e.tabIndex, e.getAttribute('role'), e.ariaLabel])"
    )
    assert all(
        index == 0 and role == "region" and label.startswith("Table: ")
        for index, role, label in wide
    )
    tab.size(1400, 900)


def luminance(colour):
    values = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_can_be_read(tab, scheme):
    """WCAG's contrast of 4.5 for every text that is shown, and no sideways scrolling on a telephone."""
    tab.scheme(scheme)
    tab.open(tab.address)
    found = tab.run(
        """[...document.querySelectorAll(
            'h1, p, th, td, figcaption, .far, .kind, .mark, .chart text, dt, dd')].map(e => {
            const own = getComputedStyle(e), ink = e.namespaceURI.endsWith('svg') ? own.fill : own.color;
            for (var b = e; b && /^rgba\\(.*, 0\\)$/.test(getComputedStyle(b).backgroundColor);) b = b.parentElement;
            return [e.className.baseVal ?? (e.className || e.tagName), ink, getComputedStyle(b).backgroundColor];
        })"""
    )
    papers = set()
    for name, ink, paper in found:
        papers.add(paper)
        dark, light = sorted([luminance(ink), luminance(paper)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ink, paper)
    assert all((luminance(paper) > 0.5) == (scheme == "light") for paper in papers)
    tab.size(400, 800)
    tab.settle()
    assert tab.run("document.documentElement.scrollWidth") <= 400
    tab.size(1400, 900)
