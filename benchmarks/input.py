"""Images per second from JPEG files to augmented batches, beside torch's DataLoader with torchvision's transforms.

    python benchmarks/input.py [--torch_python PATH] [--images 1000] [--repeat 3] [--cores N]

PATH is a Python with `pip install torch torchvision`; without it only dml_jax is measured. The images are JPEG files of
about 500 x 400 pixels, written to a temporary folder: gradients with noise, quality 90. Both sides cut out a random
part, scale it to 224 x 224, mirror it at random and put 64 of them into a batch of uint8. The pixels are those of
Pillow on both sides, but for rows with "simd" (`resampling="simd"`): a fifth of theirs differ by a level or two.

Rows with "packed" read what `dml prepare` made of the files. Threads and workers are 1, 2, 4, ... up to the machine's
cores (`--cores`), and threads twice as many. Each way runs in a process of its own, in turns, `--repeat` times, and the
first 128 images do not count. The table has a way's best images/s; the median over the rounds of its images/s divided
by those of torch with a worker for each core in the same round; and its least CPU time, of the process and its workers
together, which other programs on the machine change little.

Printed, not recorded: decoders alone, where they are installed, with how far their pixels are from Pillow's; and
photographs of 12 megapixels decoded and cropped, with and without `min_side`.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from statistics import median

import numpy as np
from machine import record
from PIL import Image

BATCH, SIZE, WARM, AHEAD = 64, 224, 2, 8


def ways(cores: int) -> list[dict]:
    """The ways of loading that a machine of so many cores is measured with."""
    counts = sorted({*(2**i for i in range(cores.bit_length()) if 2**i <= cores), cores})
    ours = [{"threads": n, "workers": 0} for n in [*counts, 2 * cores]]
    ours += [{"threads": 1, "workers": n} for n in counts]
    ours += [{"threads": n, "workers": 0, "resampling": "simd"} for n in (cores, 2 * cores)]
    ours += [{"threads": n, "workers": 0, "packed": True} for n in (cores, 2 * cores)]
    torch = [{"side": "torch", "threads": 0, "workers": n} for n in (0, *counts)]
    return [{"side": "dml_jax", **way} for way in ours] + torch


def noisy_gradient(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A picture that is a fair deal of work to decode."""
    coarse = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))


def write_images(folder: pathlib.Path, count: int) -> None:
    """Writes JPEG files of about 500 x 400 pixels."""
    rng = np.random.default_rng(0)
    for c in range(10):
        (folder / f"class{c}").mkdir()
    for i in range(count):
        height, width = 400 + int(rng.integers(-40, 40)), 500 + int(rng.integers(-50, 50))
        image = noisy_gradient(rng, height, width)
        image.save(folder / f"class{i % 10}" / f"{i}.jpg", quality=90)


def jax_batches(
    folder: str,
    threads: int,
    workers: int,
    steps: int,
    resampling: str = "pillow",
    packed: bool = False,
):
    """The batches of dml_jax."""
    from dml_jax import data

    source = data.load("folder", "all", path=f"{folder}/packed" if packed else f"{folder}/loose")
    crop = {"name": "random_resized_crop", "size": SIZE, "resampling": resampling}
    augment = data.augment.build([crop, "flip"])
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
    paths = sorted(str(path) for path in pathlib.Path(folder).glob("loose/*/*.jpg"))
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


def cpu_seconds() -> float:
    """The CPU time of this process and of its children that run."""
    seconds = time.process_time()
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name in brackets: state, parent, ...; the times are fields 14 and 15 of all.
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == os.getpid():
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def measure(way: dict, folder: str, steps: int) -> tuple[float, float]:
    """Images per second of a way, and CPU seconds for an image, without the first batches."""
    # More batches than are taken: none of the loaders runs dry while it is measured.
    total = WARM + steps + AHEAD
    if way["side"] == "torch":
        batches = torch_batches(folder, way["workers"], total)
    else:
        options = {key: way[key] for key in ("resampling", "packed") if key in way}
        batches = jax_batches(folder, way["threads"], way["workers"], total, **options)
    for _ in range(WARM):
        next(batches)
    start, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(steps):
        next(batches)
    images = steps * BATCH
    found = images / (time.perf_counter() - start), (cpu_seconds() - cpu) / images
    if way["side"] != "torch":
        batches.close()
    return found


def decoders(folder: str) -> list[str]:
    """A line for each decoder that is installed."""
    import simplejpeg

    files = [path.read_bytes() for path in sorted(pathlib.Path(folder).glob("*/*.jpg"))[:100]]

    def pillow(data: bytes, draft: bool = False) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        if draft:
            image.draft("RGB", (SIZE, SIZE))
        return np.asarray(image.convert("RGB"))

    alone = {
        "Pillow": pillow,
        "Pillow, draft to half the size": lambda data: pillow(data, True),
        "simplejpeg": simplejpeg.decode_jpeg,
        "simplejpeg, fast DCT": lambda data: simplejpeg.decode_jpeg(data, fastdct=True),
    }
    try:
        import cv2

        cv2.setNumThreads(1)
        alone["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1]
    except ImportError:
        pass
    wanted, lines = [pillow(data) for data in files], []
    for name, decode in alone.items():
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


def large_photographs() -> list[str]:
    """A line for each `min_side`: photographs of 12 megapixels decoded and cropped, ms of an image."""
    from dml_jax import data

    augment = data.augment.build([{"name": "random_resized_crop", "size": SIZE}, "flip"])
    file = io.BytesIO()
    noisy_gradient(np.random.default_rng(0), 3000, 4000).save(file, "JPEG", quality=90)
    lines = []
    for side in (None, 1024, 512, 256):
        best = np.inf
        for turn in range(5):
            start = time.perf_counter()
            image = data.decode(file.getvalue(), channels=3, min_side=side)
            augment(image, np.random.default_rng(turn))
            best = min(best, time.perf_counter() - start)
        lines.append(f"| {side} | {image.shape[1]} x {image.shape[0]} | {best * 1e3:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(*measure(json.loads(given.way), given.folder, given.steps))
        return
    with tempfile.TemporaryDirectory() as folder:
        loose = pathlib.Path(folder, "loose")
        loose.mkdir()
        write_images(loose, given.images)
        command = [sys.executable, "-m", "dml_jax.prepare", "--dataset=folder"]
        subprocess.run([*command, f"--source={loose}", f"--data_dir={folder}/packed"], check=True)
        kept = [w for w in ways(given.cores) if w["side"] != "torch" or given.torch_python]
        rates: list[list[float]] = []  # by round and way
        least = [np.inf] * len(kept)
        for _ in range(given.repeat):
            rates.append([])
            for i, way in enumerate(kept):
                python = given.torch_python if way["side"] == "torch" else sys.executable
                command = [python, __file__, f"--way={json.dumps(way)}", f"--folder={folder}"]
                done = subprocess.run(
                    [*command, f"--steps={given.steps}"],
                    env={**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                rate, cpu = map(float, done.stdout.split()[-2:])
                rates[-1].append(rate)
                least[i] = min(least[i], cpu)
        full = {"side": "torch", "threads": 0, "workers": given.cores}
        for i, way in enumerate(kept):
            how = f"{way['workers']} workers"
            if way["side"] != "torch":
                how = f"{way['threads']} threads, {how}" + (
                    ", simd" if "resampling" in way else ", packed" if "packed" in way else ""
                )
            beside = [r[i] / r[kept.index(full)] for r in rates] if full in kept else []
            record(
                "input",
                "Input: JPEG files to augmented batches",
                ["side", "how", "images/s", "times torch, a worker a core", "CPU ms an image"],
                [
                    way["side"],
                    how,
                    f"{max(r[i] for r in rates):.0f}",
                    f"{median(beside):.2f}" if beside else "-",
                    f"{least[i] * 1e3:.2f}",
                ],
            )
        print("\n| decoder | ms an image | pixels beside Pillow's |\n|---|---:|---|")
        print("\n".join(decoders(str(loose))))
        print("\n| min_side | decoded to | ms an image, with crop and flip |\n|---|---|---:|")
        print("\n".join(large_photographs()))


if __name__ == "__main__":
    main()
