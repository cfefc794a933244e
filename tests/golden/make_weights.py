"""Makes tests/golden/weights_*.pth: what torch.save writes, in the format of zip files and the one before PyTorch 1.6.

    pip install torch==2.13.0 numpy
    python tests/golden/make_weights.py

Their values are those of `tests/models/test_files_torch.py`, which needs no PyTorch.
"""

import argparse
import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent
# Types without a class of storages of their own.
NEWER = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "uint16": torch.uint16,
}
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


def tensors() -> dict[str, torch.Tensor]:
    """Views of one storage, one tensor of each type, and special cases."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    found = {
        "whole": base,
        "transposed": base.T,
        "part": base[1:, ::2],
        "column": base[:, 3],
        "expanded": torch.tensor([2.5]).expand(3, 4),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.full((2, 2), 0.5)),
    }
    found["with_attribute"] = torch.full((3,), 1.5)
    found["with_attribute"].note = "a Python attribute"
    for name in DTYPES:
        found[name] = torch.arange(3).to(getattr(torch, name))
    for name, dtype in NEWER.items():
        found[name] = torch.arange(3).to(dtype)
    return found


def training() -> dict[str, object]:
    """A checkpoint of training, whose network was wrapped for several devices."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for i, tensor in enumerate(network.state_dict().values()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + i)
    wrapped = torch.nn.ModuleDict({"module": network})
    return {
        "epoch": 3,
        "best": np.float64(0.75),
        "args": argparse.Namespace(arch="resnet50", lr=0.1),
        "student": {k: v + 1 for k, v in wrapped.state_dict().items()},
        "teacher": wrapped.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def main() -> None:
    torch.manual_seed(0)
    for name, content in (("tensors", tensors()), ("training", training())):
        for kind, new in (("zip", True), ("old", False)):
            path = FOLDER / f"weights_{name}_{kind}.pth"
            torch.save(content, path, _use_new_zipfile_serialization=new)
            print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
