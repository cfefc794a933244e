"""Every command and every snippet of the README, the guide and the how-tos, as it stands there.

Python runs, page by page, with `embeddings` and `labels` given. Commands that evaluate, embed and search run on a
runs of a few images that are called as the pages call them; commands that train, and those on a run that is called DIR,
are parsed, and their configuration is built. Nothing is passed over: a command of another kind fails.
"""

import pathlib
import re
import shlex
import tomllib

import jax
import numpy as np
import pytest
from PIL import Image

from dml_jax import command_line, config_files, evaluate, quickstart, run_folder
from dml_jax import config as configs
from dml_jax.__main__ import COMMANDS
from dml_jax.training import build
from dml_jax.training.loop import train
from tests.training.commands import CommandServer

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
# Its snippets are files of their own, and its commands name them: tests/test_docs_extending.py.
EXTENDING = ROOT / "docs" / "extending.md"
RUN = ("inspect", "evaluate", "embed", "search", "export")
STARTS = ("python ", "dml ", "make ", "pip ", ".venv/")


def blocks(page, *languages):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    return [text for language, text in found if language in languages]


def commands(page):
    """Lists the commands of a page, each as the words that a shell would make of it."""
    found = []
    for language in ("sh", ""):
        for text in blocks(page, language):
            for line in text.replace("\\\n", " ").splitlines():
                # A block without a language may be a drawing of folders.
                if language or line.startswith(STARTS):
                    found.append(shlex.split(line, comments=True))
    return [words for words in found if words]


ALL = [(page, words) for page in PAGES if page != EXTENDING for words in commands(page)]


def name(value):
    return value.name if isinstance(value, pathlib.Path) else " ".join(value)


def is_command(words, *commands):
    return words[0] == "dml" and words[1] in commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages speak of."""
    path = tmp_path_factory.mktemp("docs")
    page = ROOT / "docs" / "guide" / "your_images.md"
    (path / "of_page.py").write_text(blocks(page, "python")[0])
    classes = ["heron", "kestrel", "c", "d", "e", "f", "g", "h"]
    rng = np.random.default_rng(0)
    for called in classes:
        (path / "photos" / called).mkdir(parents=True)
        base = rng.integers(0, 256, (8, 8, 3))
        for i in range(4):
            file = f"photos/{called}/{('one', 'two', 'three', 'four')[i]}.png"
            pixels = np.clip(base + rng.integers(-20, 20, base.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path / file)
    embeddings = rng.normal(size=(12, 4))
    np.save(path / "embeddings.npy", embeddings)
    (path / "labels.csv").write_text("\n".join(["label", *"aaabbbcccddd"]) + "\n")
    # A run as DIR, for commands that change fields of its configuration.
    (path / "DIR").mkdir()
    run_folder.write_config(path / "DIR", configs.to_dict(config_files.load("quickstart")))
    return path


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p != EXTENDING and blocks(p, "python")], ids=name
)
def test_python(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = {
        "jax": jax,
        "embeddings": jax.numpy.asarray(rng.normal(size=(16, 8)), "float32"),
        "labels": jax.numpy.asarray(np.arange(16) % 4),
    }
    for text in blocks(page, "python"):
        exec(compile(text, str(page), "exec"), names)


@pytest.mark.parametrize(("page", "words"), ALL, ids=name)
def test_command(page, words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if words[:2] == ["python", "launch/local.py"]:
        assert (ROOT / words[1]).is_file()
        words = words[words.index("--") + 1 :]
        if words[:2] == ["python", "-m"]:
            words = ["dml", words[2].removeprefix("dml_jax."), *words[3:]]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M)
    elif words[:3] == ["pip", "install", "-e"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extra = re.fullmatch(r"\.\[(\w+)\]", words[3])
        assert extra and extra[1] in project["optional-dependencies"]
    elif words[0] == "pip":
        # What test_wheel.py does by the steps.
        wheel = ["pip", "wheel", "--no-deps", "--wheel-dir=dist", "."]
        assert words in (["pip", "install", "."], wheel, ["pip", "install", "dist/dml_jax-*.whl"])
    elif is_command(words, "quickstart"):
        parser = command_line.Parser("quickstart")
        quickstart.add_options(parser)
        parser.parse(words[2:])
    elif words == [".venv/bin/pre-commit", "install"]:
        assert (ROOT / ".pre-commit-config.yaml").is_file()
    elif is_command(words, "train") or "--workdir=DIR" in words:
        build_config(words[2:])
    else:
        assert is_command(words, *RUN), f"{page.name} has a command that no test runs: {words}"


def build_config(arguments):
    """Parses the options of a command, and builds what the configuration names."""
    parser = command_line.Parser("command")
    evaluate.add_options(parser)
    options = parser.parse(arguments)
    assert options.workdir.startswith("runs/") or options.workdir == "DIR"
    # The files of weights are the reader's.
    build.model(
        {**options.config.model, "weights": ""}
        if "weights" in options.config.model
        else options.config.model
    )
    build.loss(options.config)
    build.sampler(options.config.sampler)


def test_commands_that_evaluate_embed_and_search(folder, monkeypatch):
    """Runs these commands, after the runs that they name were trained a little."""
    monkeypatch.chdir(folder)
    config = config_files.load("quickstart:runlocal")
    with config.unlocked():
        config.data.classes = 12
    config.model.update(width=8, depth=1)
    config.train.devices = 1
    train(config, "runs/quickstart")
    config = config_files.load("of_page.py")
    config.model.update(width=8, depth=1)
    config.train.update(epochs=1, batch_size=8, devices=1)
    train(config, "runs/photos")

    found = [(p, w) for p, w in ALL if is_command(w, *RUN) and "--workdir=DIR" not in w]
    assert len(found) > 5
    with CommandServer() as server:
        for page, words in found:
            status, out, err = server.run([COMMANDS[words[1]], *words[2:]], folder)
            assert status == 0, f"{page.name}: {' '.join(words)}\n{out}\n{err}"
    assert (folder / "runs" / "found.html").stat().st_size > 0
