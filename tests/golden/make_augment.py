"""Writes augment.npz: what torchvision's transforms make of small images.

Run it where torch and torchvision are installed: `python tests/golden/make_augment.py`.
"""

import pathlib

import numpy as np
import torch
from PIL import Image

# A torchvision without its compiled operators asks for these two at import.
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    try:
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # the compiled ones are there
        break

import torchvision  # noqa: E402
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402

BINS = 31
LEVELS = (0, 9, 20, 30)
SIZES = ((24, 20), (331, 224), (97, 331))  # width, height


def images() -> dict[str, np.ndarray]:
    """Smooth and noisy parts, a narrow range of values in one channel (for autocontrast and equalize)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:20, :24]
    smooth = np.stack([10 * x, 12 * y, 60 + 3 * (x + y)], -1)
    noise = rng.integers((0, 0, 40), (256, 256, 190), (20, 24, 3))
    rgb = np.where((x > 13)[..., None], noise, smooth).clip(0, 255).astype(np.uint8)
    return {"rgb": rgb, "grey": rgb[..., 2]}


def strengths(policy: v2.RandAugment, name: str, width: int, height: int) -> list[float]:
    magnitudes = policy._AUGMENTATION_SPACE[name][0](BINS, height, width)
    return [0.0] * BINS if magnitudes is None else [float(m) for m in magnitudes]


def crop_cases() -> dict[str, np.ndarray]:
    """The draws inside RandomResizedCrop and the boxes that it makes of them, fall-backs included."""
    draws: list[float] = []
    uniform, randint, exp = torch.Tensor.uniform_, torch.randint, torch.exp

    def recorded_uniform(self, *args, **kwargs):
        result = uniform(self, *args, **kwargs)
        draws.append(float(result))
        return result

    def recorded_randint(*args, **kwargs):
        result = randint(*args, **kwargs)
        draws.append(float(result))
        return result

    torch.Tensor.uniform_, torch.randint = recorded_uniform, recorded_randint
    # In double precision, as Python's own floats.
    torch.exp = lambda t: exp(t.double())
    cases, all_draws = [], []
    sizes = [(40, 30), (30, 40), (100, 7), (7, 100), (33, 33), (5, 300)]
    for i, (width, height) in enumerate(sizes * 4):
        torch.manual_seed(i)
        draws.clear()
        crop = v2.RandomResizedCrop(16, scale=(0.3, 1.0) if i % 2 else (0.08, 1.0))
        box = crop.make_params([Image.new("L", (width, height))])
        cases.append([width, height, i % 2, box["left"], box["top"], box["width"], box["height"]])
        all_draws.append(draws + [np.nan] * (24 - len(draws)))
    torch.Tensor.uniform_, torch.randint, torch.exp = uniform, randint, exp
    return {"crop/cases": np.array(cases), "crop/draws": np.array(all_draws)}


def main() -> None:
    policy = v2.RandAugment(num_ops=1, num_magnitude_bins=BINS)
    out: dict[str, np.ndarray] = {
        "versions": np.array([torch.__version__, torchvision.__version__])
    }
    for kind, array in images().items():
        image = Image.fromarray(array)
        out[f"image/{kind}"] = array
        for name, (_, signed) in policy._AUGMENTATION_SPACE.items():
            levels = strengths(policy, name, *image.size)
            made = [
                np.asarray(
                    policy._apply_image_or_video_transform(
                        image, name, sign * levels[i], v2.InterpolationMode.NEAREST, policy._fill
                    )
                )
                for i in LEVELS
                for sign in ((1, -1) if signed else (1,))
            ]
            out[f"op/{name}/{kind}"] = np.stack(made)
        out[f"crop/{kind}"] = np.asarray(F.resized_crop(image, 3, 5, 13, 17, [9, 11]))
        for size in (10, 40, [7, 19]):
            out[f"resize/{kind}/{size}"] = np.asarray(F.resize(image, size))
            out[f"center_crop/{kind}/{size}"] = np.asarray(F.center_crop(image, size))
        out[f"flip/{kind}"] = np.asarray(F.horizontal_flip(image))
    for width, height in SIZES:
        for name in policy._AUGMENTATION_SPACE:
            key = f"strength/{name}/{width}x{height}"
            out[key] = np.array(strengths(policy, name, width, height), np.float64)
    out.update(crop_cases())
    out["levels"] = np.array(LEVELS)
    np.savez_compressed(pathlib.Path(__file__).with_name("augment.npz"), **out)


if __name__ == "__main__":
    main()
