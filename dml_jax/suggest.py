"""Suggests a configuration for data and machine: `dml suggest --path=photos`.

Looks at classes, images of each, memory and devices, and prints a configuration file with the reason of each choice,
as the study of Berton et al. (2025) advises them. It trains nothing, and what it prints is a beginning: a search over
rates (`dml tune`) is worth more than any advice.
"""

import argparse
import os
import sys

import numpy as np

from dml_jax import command_line, config_files, run_folder
from dml_jax.console import log
from dml_jax.errors import UserError

# From so many images a batch losses on pairs overtake classification.
PAIRS_FROM = 256
# Bytes of memory that a training step of DINOv2 takes for an image of 224 x 224: compiled for batches of 8 and 32
# (benchmarks/results/backbones.md), float32.
BYTES = {"dinov2_s": 210 << 20, "dinov2_b": 420 << 20}
# The share of the memory that is left for them.
SHARE = 0.6

# Training classes from which on some of them are held out, and the shares of a split that holds none out.
HOLDS_OUT_FROM = 20
WITHOUT_VALIDATION = (0.6, 0.0, 0.4)


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_argument(
        "--path",
        type=command_line.path,
        required=True,
        help="a folder with a sub-folder for each class, or a CSV file",
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="memory of a device; by default what it says, or that of the machine",
    )
    parser.add_argument(
        "--noisy", action="store_true", help="labels are partly wrong: choose what bears that"
    )
    parser.add_argument(
        "--out", type=command_line.path, metavar="FILE.py", help="writes it there, too"
    )


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    import jax

    from dml_jax.training import build

    config = config_files.load("own_images")
    config.data.path = options.path
    source = build.source(config, "train")
    counts = np.bincount(source.labels)
    holds_out = len(counts) >= HOLDS_OUT_FROM
    if not holds_out:
        config.data.fractions = WITHOUT_VALIDATION
        counts = np.bincount(build.source(config, "train").labels)
    devices = jax.devices()
    memory = _memory(devices[0]) if options.memory is None else options.memory
    if memory <= 0:
        raise UserError(f"--memory={memory}; a number above 0 is accepted")
    out = run_folder.writable(options.out, "--out") if options.out else None
    text = suggestion(
        options.path, counts, memory, len(devices), noisy=options.noisy, holds_out=holds_out
    )
    log(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
        log(f"# Next: {command_line.shell('train', f'--config={out}', '--workdir=runs/suggested')}")


def _memory(device: object) -> float:
    """Returns the GiB of a device; of a CPU those of the machine."""
    stats = getattr(device, "memory_stats", lambda: None)()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"]) / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def suggestion(
    path: str,
    counts: np.ndarray,
    memory: float,
    devices: int,
    *,
    noisy: bool = False,
    holds_out: bool = True,
) -> str:
    """Returns a configuration file.

    Args:
      path: of the data.
      counts: the number of images of each training class.
      memory: GiB of a device.
      devices: how many there are.
      noisy: True where labels are partly wrong.
      holds_out: False where the training classes are too few to hold some out.

    >>> text = suggestion("photos", np.array([9, 9, 9, 9]), memory=80.0, devices=1)
    >>> "low_resource" in text, "high_resource" in text
    (True, False)
    """
    classes, images, median = len(counts), int(counts.sum()), float(np.median(counts))
    budget = SHARE * memory * 2**30 * devices
    backbone = "dinov2_b" if budget / BYTES["dinov2_b"] >= 32 else "dinov2_s"
    fits = int(budget / BYTES[backbone])
    # As many images of a class as there mostly are, up to the four that the study found best.
    m = 4 if median >= 4 else 2 if median >= 2 else 1
    most = classes * m
    reasons = [f"{images} images of {classes} training classes, {median:g} of a class (median)."]
    batch = _power(min(fits, 512))
    pairs = most >= PAIRS_FROM and m > 1
    # A loss on pairs takes the batch whole and the backbone in parts.
    micro = 0
    if pairs and batch < PAIRS_FROM:
        micro, batch = batch, PAIRS_FROM
    batch = min(batch, _power(most)) if pairs else min(batch, 128, _power(images))
    preset = ("noisy_labels" if noisy else "high_resource") if pairs else "low_resource"
    reasons.append(
        f"{memory:.0f} GiB on each of {devices} devices hold about {fits} images of {backbone} in float32."
    )
    if pairs:
        reasons.append(
            f"{classes} classes with {m} images each fill batches of {batch}, with which losses on pairs are best."
        )
    else:
        why = (
            "a single image of most classes"
            if m == 1
            else f"{classes} classes fill no batch of {PAIRS_FROM} with {m} of each"
        )
        reasons.append(f"A classification loss: {why}; it works with small batches.")
    if micro:
        reasons.append(
            f"The backbone takes {micro} images at a time; the gradient is that of the whole batch."
        )
    reasons.append(
        "A tenth of the classes chooses the epoch."
        if holds_out
        else "Too few classes to hold some out: the last epoch is the result."
    )
    where = os.path.abspath(os.path.expanduser(path))
    body = [
        f'config = config_files.load("{preset}:backbone={backbone},batch_size={batch}")',
        f"config.data.path = {where!r}",
        "config.model.weights = None  # the file with its weights; `python -m dml_jax.models vit` says where to get it",
    ]
    if pairs:
        body.append(f"config.sampler.m = {m}")
    if micro:
        body.append(f"config.train.micro_batch = {micro}")
    if not holds_out:
        body += [
            f"config.data.fractions = {WITHOUT_VALIDATION}",
            'config.train.monitor = ""',
            "config.evaluation.splits = ()",
        ]
    lines = ['"""A suggestion; its reasons:', "", *(f"- {reason}" for reason in reasons), '"""', ""]
    lines += ["from dml_jax import config_files", "", "", "def get_config(arg=None):"]
    return "\n".join([*lines, *(f"    {line}" for line in body), "    return config"])


def _power(number: int) -> int:
    """Returns the largest power of two that is not above a number, at least 2."""
    return max(2, 1 << (int(number).bit_length() - 1))


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
