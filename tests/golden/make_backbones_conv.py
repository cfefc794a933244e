"""Makes tests/golden/backbones_conv.npz: what torchvision's ResNet, GoogLeNet and ConvNeXt and pretrainedmodels'
BN-Inception compute in float64 from the arrays of conv_recipe.py.

    pip install torch==2.13.0 torchvision==0.28.0
    git clone https://github.com/Cadene/pretrained-models.pytorch
    python tests/golden/make_backbones_conv.py pretrained-models.pytorch/pretrainedmodels/models

For each case and side: the last map in evaluation; and in training the map, the running statistics after it, and the
gradients of the weighted sum of the map by the input and by every parameter. Large arrays are projected on random
directions.
"""

import pathlib
import sys

import numpy as np
import torch

# A torchvision whose compiled operators do not load would stop its own import.
_LIBRARY = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    _LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision.models import GoogLeNet, ResNet, convnext, resnet  # noqa: E402

sys.path[:0] = [str(pathlib.Path(__file__).parent), *sys.argv[1:]]
import bninception  # noqa: E402
import conv_recipe  # noqa: E402

OUT = pathlib.Path(__file__).with_name("backbones_conv.npz")


def networks():
    """Yields (name, network, function that gives its last map)."""
    for name, block in (
        ("resnet_basic", resnet.BasicBlock),
        ("resnet_bottleneck", resnet.Bottleneck),
    ):
        network = ResNet(block, [2, 1, 1, 1])
        layers = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        parts = torch.nn.Sequential(*(getattr(network, layer) for layer in layers))
        yield name, network, parts
    network = bninception.BNInception()
    yield "bn_inception", network, network.features
    network = GoogLeNet(aux_logits=True, init_weights=False)
    names = [n for n, _ in network.named_children()]
    parts = torch.nn.Sequential(*(getattr(network, n) for n in names[: names.index("aux1")]))
    yield "googlenet", network, parts
    widths, depths = (8, 16, 24, 32, None), (2, 1, 2, 1)
    setting = [
        convnext.CNBlockConfig(a, b, n) for a, b, n in zip(widths, widths[1:], depths, strict=False)
    ]
    network = convnext.ConvNeXt(setting)
    yield "convnext", network, lambda x: network.classifier[0](network.avgpool(network.features(x)))


def is_used(name):
    """Whether a buffer is a running statistic of what is computed: auxiliary heads are not."""
    return "running" in name and not name.startswith("aux")


def main():
    arrays = {}
    for name, network, parts in networks():
        shapes = {
            n: tuple(a.shape)
            for n, a in network.state_dict().items()
            if not n.endswith("num_batches_tracked")
        }
        weights = {n: torch.from_numpy(a) for n, a in conv_recipe.draw(shapes).items()}
        arrays[f"{name}/shapes"] = np.array([f"{n}:{list(s)}" for n, s in shapes.items()])
        for side in conv_recipe.SIDES:
            network.load_state_dict(weights, strict=False)
            network.double()
            x = torch.from_numpy(conv_recipe.images(side)).double().permute(0, 3, 1, 2)
            x.requires_grad_()
            with torch.no_grad():
                network.eval()
                arrays[f"{name}/{side}/eval"] = parts(x).numpy()
                network.train()
                network.load_state_dict(weights, strict=False)
            network.zero_grad()
            y = parts(x)
            (y * torch.from_numpy(conv_recipe.cotangent(y.shape))).sum().backward()
            found = {"train": y, "input": x.grad.permute(0, 2, 3, 1)}
            found |= {f"gradient/{n}": p.grad for n, p in network.named_parameters()}
            found |= {f"after/{n}": b for n, b in network.named_buffers() if is_used(n)}
            for key, value in found.items():
                if value is not None:
                    array = value.detach().numpy()
                    arrays[f"{name}/{side}/{key}"] = conv_recipe.project(array)
            arrays[f"{name}/{side}/eval"] = conv_recipe.project(arrays[f"{name}/{side}/eval"])
    packed = {"names": np.array([k for k in arrays if not k.endswith("/shapes")])}
    packed["values"] = np.stack([arrays[k] for k in packed["names"]])
    packed |= {k: v for k, v in arrays.items() if k.endswith("/shapes")}
    np.savez_compressed(OUT, **packed)
    print(OUT.name, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
