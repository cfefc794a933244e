"""`dml prepare` at the size of the papers' data sets: seconds and memory to pack, to open, and to plan an epoch.

    python benchmarks/prepare.py [--sets=sop,inaturalist2018] [--folder=DIR]

The sets are made up: the layouts and the counts are true, the JPEG files are a few of 32 x 24 pixels. Memory is the
highest resident set of the packing processes, and what a process that opens the set and plans has more than before.
"""

import argparse
import io
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from machine import record
from PIL import Image

from dml_jax.data.published_sets import PUBLISHED

OPENED = """
import sys, time, resource
from dml_jax import data, samplers
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
before = memory()
begun = time.perf_counter()
sources = [data.load(sys.argv[1], split, path=sys.argv[2]) for split in ("train", "test", "all")]
opened = time.perf_counter() - begun
sources[0][12345]
begun = time.perf_counter()
plan = samplers.m_per_class(m=4).plan(sources[0].labels, 256, seed=0, epoch=0)
planned = time.perf_counter() - begun
names = [sources[0].name(i) for i in range(1000)]
print(opened, planned, memory() - before)
"""


def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(8):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(file, "JPEG")
        found.append(file.getvalue())
    return found


def labels_of(split: str, name: str) -> np.ndarray:
    """A class for each image of a split, with two images or more of each."""
    count = PUBLISHED[name].counts[split]
    rng = np.random.default_rng(0)
    rest = rng.integers(0, count.classes, count.images - count.classes)
    return np.sort(np.concatenate([np.arange(count.classes), rest]))


def make(name: str, root: pathlib.Path) -> None:
    """Writes the set in its published layout."""
    images = pictures()
    train, test = labels_of("train", name), labels_of("test", name)
    labels = np.concatenate([train, test + train.max() + 1])
    if name == "sop":
        files = [f"kind{c % 12}_final/{c}_{i}.JPG" for i, c in enumerate(labels)]
        rows = [
            f"{i} {c + 1} {c % 12 + 1} {f}"
            for i, (c, f) in enumerate(zip(labels, files, strict=True))
        ]
        for part, lines in (("train", rows[: len(train)]), ("test", rows[len(train) :])):
            text = "\n".join(["image_id class_id super_class_id path", *lines])
            (root / f"Ebay_{part}.txt").write_text(text + "\n")
    else:
        files = [f"train_val2018/kind{c % 13}/{c}/{i}.jpg" for i, c in enumerate(labels)]
        content = {
            "images": [{"id": i, "file_name": f} for i, f in enumerate(files)],
            "annotations": [{"image_id": i, "category_id": int(c)} for i, c in enumerate(labels)],
        }
        (root / "train2018.json").write_text(json.dumps(content))
        (root / "val2018.json").write_text('{"images": [], "annotations": []}')
        (root / "Inat_dataset_splits").mkdir()
        for part, some in (("train", files[: len(train)]), ("test", files[len(train) :])):
            (root / f"Inat_dataset_splits/Inaturalist_{part}_set1.txt").write_text("\n".join(some))
    for folder in {f.rpartition("/")[0] for f in files}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        (root / file).write_bytes(images[i % len(images)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default="sop,inaturalist2018")
    parser.add_argument("--folder", help="where files are made; by default a temporary folder")
    given = parser.parse_args()
    for name in given.sets.split(","):
        with tempfile.TemporaryDirectory(dir=given.folder) as place:
            root, out = pathlib.Path(place, "source"), pathlib.Path(place, "packed")
            root.mkdir()
            make(name, root)
            begun = time.perf_counter()
            command = [sys.executable, "-m", "dml_jax.prepare", f"--dataset={name}"]
            subprocess.run([*command, f"--source={root}", f"--data_dir={out}"], check=True)
            took = time.perf_counter() - begun
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            done = subprocess.run(
                [sys.executable, "-c", OPENED, name, str(out)],
                check=True,
                capture_output=True,
                text=True,
            )
            opened, planned, memory = map(float, done.stdout.split())
            size = sum(f.stat().st_size for f in out.iterdir()) / 2**20
            row = {
                "set": name,
                "images": f"{PUBLISHED[name].counts['all'].images:,}",
                "pack s": f"{took:.0f}",
                "peak MiB of a process": f"{peak:.0f}",
                "packed MiB": f"{size:.0f}",
                "open 3 splits s": f"{opened:.2f}",
                "plan an epoch s": f"{planned:.2f}",
                "MiB of both": f"{memory:.0f}",
            }
            title = "Data sets of the papers' sizes, packed and opened"
            record("prepare_cpu", title, list(row), list(row.values()))


if __name__ == "__main__":
    main()
