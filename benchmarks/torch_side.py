"""The PyTorch and PML side of beside_torch.py: the same network, loss, optimizer and crops, in their own terms.

torchvision's transforms, PML's sampler, losses, miner and AccuracyCalculator, torch.optim.Adam. Only the images come
from dml_jax's sources, as decoded arrays.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

# torchvision's operators are not in every build of it for the CPU; declared, the transforms work without them.
try:
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except RuntimeError:
    pass

from pytorch_metric_learning import losses, miners, samplers
from pytorch_metric_learning.utils import common_functions
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torchvision import transforms

# Expansion, output channels, repeats and stride of the first block: table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LOSSES = {"multi_similarity": losses.MultiSimilarityLoss, "cos_face": losses.CosFaceLoss}
MINERS = {"multi_similarity": miners.MultiSimilarityMiner}

# (uint8 [B, H, W, 3], labels [B])
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


class SameConv(nn.Module):
    """A convolution with TensorFlow's SAME padding: the odd row of it is at the bottom and on the right."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray, stride: int, depthwise: bool) -> None:
        super().__init__()
        # A kernel of the file is [height, width, in, out]; a depthwise one [height, width, 1, channels].
        self.weight = nn.Parameter(torch.tensor(kernel.transpose(3, 2, 0, 1)))
        self.bias = nn.Parameter(torch.tensor(bias))
        self.stride, self.groups = stride, len(bias) if depthwise else 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            total = max(
                (-(-size // self.stride) - 1) * self.stride + self.weight.shape[2] - size, 0
            )
            pad += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pad), self.weight, self.bias, self.stride, groups=self.groups)


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0 with folded batch normalisation; uint8 images [B, H, W, 3] to vectors [B, 1280] of norm 1."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()

        def conv(name: str, stride: int = 1, depthwise: bool = False) -> SameConv:
            return SameConv(arrays[f"{name}/kernel"], arrays[f"{name}/bias"], stride, depthwise)

        self.stem, self.last = conv("stem", 2), conv("head_conv")
        self.blocks = nn.ModuleList()
        self.residual = []
        inputs = 32
        for expansion, outputs, repeats, first in STAGES:
            for i in range(repeats):
                name = f"block_{len(self.blocks):02d}"
                stride = first if i == 0 else 1
                parts: list[nn.Module] = []
                if expansion != 1:
                    parts += [conv(f"{name}/expand"), nn.ReLU6()]
                parts += [conv(f"{name}/depthwise", stride, True), nn.ReLU6()]
                self.blocks.append(nn.Sequential(*parts, conv(f"{name}/project")))
                self.residual.append(stride == 1 and inputs == outputs)
                inputs = outputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.stem((images.permute(0, 3, 1, 2).float() - 127.5) / 127.5))
        for block, residual in zip(self.blocks, self.residual, strict=True):
            x = x + block(x) if residual else block(x)
        return F.normalize(F.relu6(self.last(x)).mean((2, 3)))


def chain(steps: Any) -> Callable[[Image.Image], Image.Image]:
    """torchvision's transforms for the steps of the section `data`."""
    made = {
        "random_resized_crop": lambda size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3): (
            transforms.RandomResizedCrop(size, tuple(scale), tuple(ratio))
        ),
        "flip": lambda p=0.5: transforms.RandomHorizontalFlip(p),
        "resize": lambda size: transforms.Resize(size),
        "center_crop": lambda size: transforms.CenterCrop(size),
    }
    return transforms.Compose(
        [made[s["name"]](**{k: v for k, v in s.items() if k != "name"}) for s in steps]
    )


def train_batches(source: Any, config: Any, seed: int) -> Batches:
    """The batches of a whole training: PML's sampler, torchvision's transforms."""
    common_functions.NUMPY_RANDOM = np.random.RandomState(seed)
    size, epochs = config.train.batch_size, config.train.epochs
    length = config.sampler.get("length") or len(source)
    sampler = samplers.MPerClassSampler(source.labels, config.sampler.m, size, length)
    transform = chain(config.data.augment)

    def load(row: list[int]) -> tuple[np.ndarray, np.ndarray]:
        images = [np.asarray(transform(Image.fromarray(source[i]["image"]))) for i in row]
        return np.stack(images), np.asarray(source.labels)[row]

    def plan() -> Iterator[list[int]]:
        for _ in range(epochs):
            order = [int(i) for i in sampler]
            yield from (order[k : k + size] for k in range(0, len(order), size))

    # One thread: torch's random numbers are then drawn in the order of the images.
    rows = plan()
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load, row) for row in itertools.islice(rows, 2)]
        while waiting:
            batch = waiting.pop(0).result()
            waiting += [pool.submit(load, row) for row in itertools.islice(rows, 1)]
            yield batch


class Run:
    """A training of the config's network, loss and optimizer, batch by batch."""

    def __init__(self, config: Any, classes: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = MobileNetV2(dict(np.load(config.model.weights)))
        loss = config.loss.to_dict()
        name = loss.pop("name")
        if name == "cos_face":
            loss |= {"num_classes": classes, "embedding_size": 1280}
        self.loss = LOSSES[name](**loss)
        self.miner = None
        if config.miner is not None:
            miner = dict(config.miner)
            self.miner = MINERS[miner.pop("name")](**miner)
        groups = [{"params": self.model.parameters(), "lr": config.optim.backbone.lr}]
        if learned := list(self.loss.parameters()):
            groups.append({"params": learned, "lr": config.optim.loss.lr})
        self.optimizer = torch.optim.Adam(groups)

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """One step of training; the loss before it."""
        embeddings = self.model(torch.from_numpy(images))
        given = torch.from_numpy(np.asarray(labels, np.int64))
        mined = None if self.miner is None else self.miner(embeddings, given)
        value = self.loss(embeddings, given, mined)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        return value.item()

    def evaluate(self, source: Any, config: Any) -> float:
        """MAP@R of a split, every image a query."""
        transform, size = chain(config.data.prepare), config.evaluation.batch_size

        def load(start: int) -> np.ndarray:
            rows = range(start, min(start + size, len(source)))
            return np.stack(
                [np.asarray(transform(Image.fromarray(source[i]["image"]))) for i in rows]
            )

        with torch.no_grad(), ThreadPoolExecutor(1) as pool:
            batches = pool.map(load, range(0, len(source), size))
            embeddings = torch.cat([self.model(torch.from_numpy(x)) for x in batches])
        calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
        found = calculator.get_accuracy(embeddings, torch.from_numpy(np.asarray(source.labels)))
        return float(found["mean_average_precision_at_r"])
