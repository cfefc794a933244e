"""The side of beside_papers.py that runs the papers' released code, in an environment with PyTorch.

Both parts write what the other side begins from (`begin.npz`, `weights.pth`) to a folder, train on the batches of
`batches.npz`, and write the losses to `theirs.npy`; with --float64 the same in double precision to `theirs64.npy`.
"""

import argparse
import pathlib
import sys

import numpy as np
import torch

# torchvision's operators are not in every build of it for the CPU; declared, the rest works without them.
try:
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except RuntimeError:
    pass

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tensors(images: np.ndarray) -> torch.Tensor:
    """As ToTensor and Normalize make them: [B, 3, H, W]."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (scaled - mean) / std


def icml2020(code: pathlib.Path, loss: str, classes: int, folder: pathlib.Path):
    """(model, embed, criterion, optimizer), of main.py with --arch=resnet50_frozen_normalize."""
    sys.path.insert(0, str(code))
    import parameters
    from architectures import resnet50
    from criteria import arcface, multisimilarity, softmax

    parser = argparse.ArgumentParser()
    for add in (
        "basic_training_parameters",
        "batch_creation_parameters",
        "batchmining_specific_parameters",
        "loss_specific_parameters",
    ):
        parser = getattr(parameters, add)(parser)  # fmt: skip
    opt = parser.parse_args(["--arch=resnet50_frozen_normalize", "--not_pretrained"])
    opt.n_classes, opt.device = classes, torch.device("cpu")
    model = resnet50.Network(opt)
    _running_statistics(model)
    criterion = {"arcface": arcface, "multisimilarity": multisimilarity, "softmax": softmax}[
        loss
    ].Criterion(opt)
    groups = [{"params": model.parameters(), "lr": opt.lr, "weight_decay": opt.decay}]
    if criterion.REQUIRES_OPTIM:
        groups.append({"params": criterion.parameters(), "lr": criterion.lr})
    backbone = {k: v for k, v in model.model.state_dict().items() if "last_linear" not in k}
    torch.save(backbone, folder / "weights.pth")
    head = model.model.last_linear
    begin = {"head/kernel": head.weight.T, "head/bias": head.bias}
    if criterion.REQUIRES_OPTIM:
        begin["loss/weights"] = criterion.class_map
    np.savez(folder / "begin.npz", **{k: v.detach().numpy() for k, v in begin.items()})
    model.train()
    embed = lambda x: model(x)[0]
    return model, embed, lambda e, y: criterion(e, y), torch.optim.Adam(groups)


def _running_statistics(model: torch.nn.Module) -> None:
    """Gives a network of random weights statistics of some images, as a trained one has them.

    The released code freezes its BatchNorm when it is made: only here it is set going for a moment.
    """
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.training, norm.momentum = True, None
        norm.reset_running_stats()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn((16, 3, 64, 64), generator=generator))
    for norm in norms:
        norm.training, norm.momentum = False, 0.1


def gmb2025(
    code: pathlib.Path, dinov2: pathlib.Path, loss: str, classes: int, folder: pathlib.Path
):
    """(model, criterion, optimizers), of main.py with --dino_size=s, in float32."""
    sys.path.insert(0, str(code))
    import pytorch_metric_learning.losses as losses
    import pytorch_metric_learning.miners as miners

    # The same code, from where it lies, without the weights, which would be downloaded.
    load = torch.hub.load
    torch.hub.load = lambda _, name: load(str(dinov2), name, source="local", pretrained=False)
    from retrieval_model import DinoWrapper

    model = DinoWrapper(dino_size="s", feat_dim=None)
    torch.save(model.dinov2.state_dict(), folder / "weights.pth")
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-6)]
    if loss == "CosFaceLoss":
        criterion = losses.CosFaceLoss(classes, model.feat_dim)
        optimizers.append(torch.optim.Adam(criterion.parameters(), lr=1.0))
        np.savez(folder / "begin.npz", **{"loss/weights": criterion.W.detach().numpy().T})
        apply = criterion
    else:
        criterion, miner = getattr(losses, loss)(), miners.MultiSimilarityMiner()
        np.savez(folder / "begin.npz")
        apply = lambda e, y: criterion(e, y, miner(e, y))
    model.train()
    return model, apply, optimizers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=("icml2020", "gmb2025"))
    parser.add_argument("loss")
    parser.add_argument("code", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--dinov2", type=pathlib.Path)
    parser.add_argument("--float64", action="store_true", help="the same in double precision")
    given = parser.parse_args()
    torch.manual_seed(0)
    batches = np.load(given.folder / "batches.npz")
    images, labels, plan = (batches[k] for k in ("images", "labels", "plan"))
    classes = int(labels.max()) + 1
    if given.study == "icml2020":
        model, embed, criterion, optimizer = icml2020(given.code, given.loss, classes, given.folder)
        optimizers = [optimizer]
    else:
        model, criterion, optimizers = gmb2025(
            given.code, given.dinov2, given.loss, classes, given.folder
        )
        embed = model
    if given.float64:
        model.double()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            for parameter in group["params"]:
                parameter.data = parameter.data.double()
    found = []
    for rows in plan:
        pixels = tensors(images[rows])
        pixels = pixels.double() if given.float64 else pixels
        value = criterion(embed(pixels), torch.from_numpy(labels[rows]))
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        found.append(value.item())
        print(len(found), found[-1], flush=True)
    name = "theirs64.npy" if given.float64 else "theirs.npy"
    np.save(given.folder / name, np.array(found))


if __name__ == "__main__":
    main()
