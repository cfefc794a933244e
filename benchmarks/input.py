"""Images per second from JPEG files to augmented batches, beside torch's DataLoader with torchvision's transforms.

    python benchmarks/input.py [--torch_python PATH] [--images 1000] [--repeat 3]

PATH is a Python with `pip install torch torchvision`; without it only dml_jax is measured. The images are JPEG files of
about 500 x 400 pixels, written to a temporary folder: gradients with noise, quality 90. Both sides decode with Pillow,
cut out a random part, scale it to 224 x 224, mirror it at random and put 64 of them into a batch: dml_jax as uint8, as
it goes to the device, torch as uint8, too (PILToTensor). Each way runs in a process of its own, in turns; the best of
`--repeat` counts, without the first 128 images. Decoders beside Pillow (simplejpeg, OpenCV, Pillow's draft mode) are
measured alone where they are installed: milliseconds for an image, and how far its pixels are from Pillow's.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from machine import record
from PIL import Image

BATCH, SIZE, WARM = 64, 224, 2
WAYS = (
    {"side": "dml_jax", "threads": 1, "workers": 0},
    {"side": "dml_jax", "threads": 2, "workers": 0},
    {"side": "dml_jax", "threads": 4, "workers": 0},
    {"side": "dml_jax", "threads": 1, "workers": 2},
    {"side": "torch", "threads": 0, "workers": 0},
    {"side": "torch", "threads": 0, "workers": 1},
    {"side": "torch", "threads": 0, "workers": 2},
)


def write_images(folder: pathlib.Path, count: int) -> None:
    """Writes JPEG files of about 500 x 400 pixels, whose content is a fair deal of work to decode."""
    rng = np.random.default_rng(0)
    for c in range(10):
        (folder / f"class{c}").mkdir()
    for i in range(count):
        height, width = 400 + int(rng.integers(-40, 40)), 500 + int(rng.integers(-50, 50))
        coarse = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 12, (height, width, 3))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"class{i % 10}" / f"{i}.jpg", quality=90)


def jax_batches(folder: str, threads: int, workers: int, steps: int):
    """The batches of dml_jax."""
    from dml_jax import data

    source = data.load("folder", "train", path=folder, fractions=(1.0, 0.0, 0.0))
    augment = data.augment.build([{"name": "random_resized_crop", "size": SIZE}, "flip"])
    rng = np.random.default_rng(0)
    plan = np.stack([rng.permutation(len(source))[:BATCH] for _ in range(steps)])
    return data.train_batches(
        source, plan, transform=augment, seed=0, epoch=0, threads=threads, workers=workers
    )


def torch_batches(folder: str, workers: int, steps: int):
    """The batches of torch."""
    import torch

    # torchvision's operators are not in every build of it for the CPU; declared, the transforms work without them.
    try:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass
    from torchvision import transforms

    torch.set_num_threads(1)
    paths = sorted(str(path) for path in pathlib.Path(folder).glob("*/*.jpg"))
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return steps * BATCH

        def __getitem__(self, i: int):
            return augment(Image.open(paths[i % len(paths)]).convert("RGB"))

    loader = torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, num_workers=workers)
    return iter(loader)


def measure(way: dict, folder: str, steps: int) -> float:
    """Images per second of a way, without the first batches."""
    if way["side"] == "torch":
        batches = torch_batches(folder, way["workers"], steps + WARM)
    else:
        batches = jax_batches(folder, way["threads"], way["workers"], steps + WARM)
    for _ in range(WARM):
        next(batches)
    start, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch["image"] if isinstance(batch, dict) else batch)
    return images / (time.perf_counter() - start)


def decoders(folder: str) -> list[str]:
    """A line for each decoder that is installed."""
    import io

    files = [path.read_bytes() for path in sorted(pathlib.Path(folder).glob("*/*.jpg"))[:100]]

    def pillow(data: bytes, draft: bool = False) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        if draft:
            image.draft("RGB", (SIZE, SIZE))
        return np.asarray(image.convert("RGB"))

    ways = {"Pillow": pillow, "Pillow, draft to half the size": lambda data: pillow(data, True)}
    try:
        import simplejpeg

        ways["simplejpeg"] = simplejpeg.decode_jpeg
        ways["simplejpeg, fast DCT"] = lambda data: simplejpeg.decode_jpeg(data, fastdct=True)
    except ImportError:
        pass
    try:
        import cv2

        cv2.setNumThreads(1)
        ways["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1]
    except ImportError:
        pass
    wanted, lines = [pillow(data) for data in files], []
    for name, decode in ways.items():
        best = np.inf
        for _ in range(3):
            start = time.perf_counter()
            found = [decode(data) for data in files]
            best = min(best, (time.perf_counter() - start) / len(files))
        if found[0].shape == wanted[0].shape:
            apart = [np.abs(a.astype(int) - b) for a, b in zip(found, wanted, strict=True)]
            far = f"{max(a.max() for a in apart)} at most, {np.mean([a.mean() for a in apart]):.2f} on average"
        else:
            far = "another size"
        lines.append(f"| {name} | {best * 1e3:.2f} | {far} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(measure(json.loads(given.way), given.folder, given.steps))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_images(pathlib.Path(folder), given.images)
        best: dict[int, float] = {}
        for _ in range(given.repeat):
            for i, way in enumerate(WAYS):
                python = given.torch_python if way["side"] == "torch" else sys.executable
                if python is None:
                    continue
                command = [python, __file__, f"--way={json.dumps(way)}", f"--folder={folder}"]
                done = subprocess.run(
                    [*command, f"--steps={given.steps}"],
                    env={**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                best[i] = max(best.get(i, 0.0), float(done.stdout.split()[-1]))
        torch_best = max((v for i, v in best.items() if WAYS[i]["side"] == "torch"), default=None)
        for i, rate in best.items():
            way = WAYS[i]
            how = f"{way['threads']} threads, {way['workers']} workers"
            beside = "-" if torch_best is None else f"{rate / torch_best:.2f}"
            row = [
                way["side"],
                how if way["side"] != "torch" else f"{way['workers']} workers",
                f"{rate:.0f}",
                beside,
            ]
            record(
                "input",
                "Input: JPEG files to augmented batches",
                ["side", "how", "images/s", "times torch's best"],
                row,
            )
        print("\n| decoder | ms an image | pixels beside Pillow's |\n|---|---:|---|")
        print("\n".join(decoders(folder)))


if __name__ == "__main__":
    main()
