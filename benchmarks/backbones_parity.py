"""Backbones of published sizes beside their libraries: files of ours, loaded by the libraries themselves.

    python benchmarks/backbones_parity.py --torch_python PATH [--only NAME,NAME] [--no_gradients]

PATH is a Python with `pip install torch torchvision timm transformers pretrainedmodels`. For each case the backbone is
drawn at random (running statistics, biases and scales, too) and written as safetensors by the names of one source; the
library reads the file with its own loader, and whatever it misses or does not expect, but for classifiers and what it
pools with, ends the run. Both compute the embedding of the same images, 224 x 224 or what the model takes, float32,
and the gradient of its product with fixed numbers. The errors are the largest difference of the embeddings relative to
the largest value, and the largest over the parameters of the norm of the difference of gradients relative to the norm
of the gradient, for the parameters that the library has under the names of the file. In float32 a rounding turns
single ReLUs over, which changes the gradients of networks that have them by up to a few thousandths.
"""

import argparse
import pathlib
import re
import subprocess
import tempfile

import numpy as np
from machine import record

TITLE = "Backbones of published sizes beside their libraries, from one file"
COLUMNS = ["backbone", "library", "parameters", "embedding", "gradients", "compared"]
IMAGES = 2
# Our model, its hyper-parameters, the source whose names the file has, and the library's model.
CASES = {
    "ResNet-50": ("resnet", {"size": 50}, "torchvision or timm", "torchvision:resnet50"),
    "ResNet-50, timm": ("resnet", {"size": 50}, "torchvision or timm", "timm:resnet50"),
    "BN-Inception": ("bn_inception", {}, "pretrainedmodels", "pretrainedmodels:bninception"),
    "GoogLeNet": ("googlenet", {}, "torchvision", "torchvision:googlenet"),
    "ConvNeXt-T": ("convnext", {"size": "t"}, "torchvision", "torchvision:convnext_tiny"),
    "ViT-S/16": ("plain_vit", {"size": "s"}, "timm", "timm:vit_small_patch16_224"),
    "ViT-B/16": (
        "plain_vit",
        {"size": "b", "antialias": False},
        "torchvision",
        "torchvision:vit_b_16",
    ),
    "DINOv2-S/14": ("vit", {"size": "s"}, "transformers", "transformers:Dinov2Model"),
    "DINOv2-S/14, registers": (
        "vit",
        {"size": "s", "registers": 4},
        "transformers",
        "transformers:Dinov2WithRegistersModel",
    ),
    "DINOv2-S/14 at 518": (
        "vit",
        {"size": "s", "image_size": 518},
        "facebookresearch/dinov2",
        "timm:vit_small_patch14_dinov2",
    ),
    "DINOv3-S/16": ("dinov3", {"size": "s"}, "transformers", "transformers:DINOv3ViTModel"),
    "CLIP-B/32": (
        "clip",
        {"size": "b", "patch": 32},
        "transformers",
        "transformers:CLIPVisionModel",
    ),
    "SigLIP-B/16": ("siglip", {"size": "b"}, "timm", "timm:vit_base_patch16_siglip_224"),
}
# What the libraries hold beside the backbone.
BESIDE = r"(.*\.)?(fc|head|heads|classifier|last_linear|pooler|mask_token|norm\.0)\b.*|classifier\.2\..*|.*mask_token"


def drawn(model, rng: np.random.Generator):
    """A backbone by path, without a value that hides a part: `(params, state)`."""
    import jax

    from dml_jax.trees import flatten

    variables = jax.device_get(model.init(jax.random.key(0)))
    params, state = (flatten(variables[part].get("backbone", {})) for part in ("params", "state"))
    for path, array in params.items():
        if array.ndim == 1:
            params[path] = array + rng.normal(0, 0.1, array.shape).astype(np.float32)
    for path, array in state.items():
        is_mean = path.endswith("mean")
        values = rng.normal(0, 0.1, array.shape) if is_mean else rng.uniform(0.5, 1.5, array.shape)
        state[path] = values.astype(np.float32)
    return params, state


def ours(name: str, folder: pathlib.Path, gradients: bool) -> tuple[int, np.ndarray, dict]:
    """Writes the file and the images; returns the number of parameters, the embedding and gradients by name."""
    import jax
    from safetensors.numpy import save_file

    from dml_jax import models
    from dml_jax.trees import flatten, unflatten

    model_name, hyper, source, _ = CASES[name]
    model = models.get(model_name, normalize=False, **hyper)
    rng = np.random.default_rng(0)
    params, state = drawn(model, rng)
    table = next(
        t
        for t in model.sources
        if t.source == source and all(t.names(path) for path in params | state)
    )
    save_file(table.save(params | state), folder / "model.safetensors", metadata={"format": "pt"})
    side = model.image_size
    images = rng.integers(0, 256, (IMAGES, side, side, 3), np.uint8)
    order = slice(None, None, -1) if model.bgr else slice(None)
    scaled = (images[..., order] / 255 - np.array(model.mean)) / np.array(model.std)
    weights = rng.normal(size=(IMAGES, model.dim)).astype(np.float32)
    np.savez(
        folder / "images.npz",
        images=scaled.transpose(0, 3, 1, 2).astype(np.float32),
        weights=weights,
    )

    def value(params):
        given = {"params": {"backbone": params}, "state": {"backbone": unflatten(state)}}
        features = model.apply(given, images)[0]
        return (features * weights).sum(), features

    with jax.default_matmul_precision("highest"):
        tree = unflatten(params)
        if not gradients:
            return sum(a.size for a in params.values()), np.asarray(jax.jit(value)(tree)[1]), {}
        grads, features = jax.jit(jax.grad(value, has_aux=True))(tree)
    slopes = table.save(flatten(jax.device_get(grads)))
    return sum(a.size for a in params.values()), np.asarray(features), slopes


def theirs(name: str, folder: pathlib.Path, gradients: bool) -> None:
    """Has the library read the file, and writes its embedding and gradients."""
    import torch
    from safetensors.torch import load_file

    # A build without its C++ operators does not load otherwise; none of them is used here.
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        try:
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        except RuntimeError:
            continue
    kind, _, known = CASES[name][3].partition(":")
    path = folder / "model.safetensors"
    if kind == "transformers":
        import transformers

        made = getattr(transformers, known)
        sizes = {"Dinov2": (384, 6), "DINOv3": (384, 6)}.get(known[:6], (768, 12))
        more = {"num_register_tokens": 4} if known.startswith("DINOv3") else {}
        if known.startswith("CLIP"):
            more = {"intermediate_size": 3072, "patch_size": 32}
        elif known.startswith("Dinov2"):
            more = {"patch_size": 14, "image_size": 518}
        else:
            more["intermediate_size"] = 4 * sizes[0]
        config = made.config_class(
            hidden_size=sizes[0], num_attention_heads=sizes[1], num_hidden_layers=12, **more
        )
        config.save_pretrained(folder)
        model, said = made.from_pretrained(folder, output_loading_info=True)
        missing, unexpected = said["missing_keys"], said["unexpected_keys"]
        embed = lambda x: model(x).pooler_output
    elif kind == "timm":
        import timm

        # timm's own reading of a file of weights.
        model = timm.create_model(
            known, num_classes=0, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
        )
        missing, unexpected, embed = (), (), model
    else:
        state = load_file(path)
        if kind == "torchvision":
            import torchvision

            more = {"aux_logits": False, "init_weights": False} if known == "googlenet" else {}
            model = getattr(torchvision.models, known)(weights=None, **more)
        else:
            import pretrainedmodels

            model = getattr(pretrainedmodels, known)(pretrained=None)
        said = model.load_state_dict(state, strict=False)
        missing, unexpected = said.missing_keys, said.unexpected_keys
        last = next(n for n in ("fc", "heads", "classifier", "last_linear") if hasattr(model, n))
        empty = torch.nn.Identity()
        if known.startswith("convnext"):
            model.classifier[2] = empty
        else:
            setattr(model, last, empty)
        embed = model
    counters = [n for n in missing if n.endswith("num_batches_tracked")]
    lost = [n for n in missing if n not in counters and not re.fullmatch(BESIDE, n)]
    if lost or unexpected:
        raise SystemExit(f"{name}: {CASES[name][3]} misses {lost}, does not expect {unexpected}")
    model.eval()
    given = np.load(folder / "images.npz")
    features = embed(torch.from_numpy(given["images"]))
    found = {"embedding": features.detach().numpy()}
    if gradients:
        (features * torch.from_numpy(given["weights"])).sum().backward()
        found |= {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    np.savez(folder / "found.npz", **found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--only", default=";".join(CASES), help="names, separated by ;")
    parser.add_argument("--no_gradients", action="store_true")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    gradients = not given.no_gradients
    if given.work:
        theirs(given.work[0], pathlib.Path(given.work[1]), gradients)
        return
    for name in given.only.split(";"):
        with tempfile.TemporaryDirectory() as folder:
            count, embedding, slopes = ours(name, pathlib.Path(folder), gradients)
            command = [given.torch_python, __file__, "--work", name, folder]
            command += ["--no_gradients"] * given.no_gradients
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = dict(np.load(pathlib.Path(folder) / "found.npz"))
        wanted = found.pop("embedding")
        error = np.abs(embedding - wanted).max() / np.abs(wanted).max()
        common = [n for n in slopes if n in found and np.linalg.norm(found[n]) > 1e-6]
        errors = [np.linalg.norm(slopes[n] - found[n]) / np.linalg.norm(found[n]) for n in common]
        cells = [f"{max(errors):.1e}", str(len(errors))] if errors else ["-", "0"]
        row = [name, CASES[name][3], f"{count:,}", f"{error:.1e}", *cells]
        record("backbones_parity", TITLE, COLUMNS, row)


if __name__ == "__main__":
    main()
