"""Makes tests/golden/models.npz: tiny DINOv2 models of the transformers library, their inputs and
outputs, and torch's bicubic resampling.

    pip install torch==2.13.0 torchvision==0.28.0 transformers==5.23.0
    python tests/golden/make_models.py

Weights are rounded to float16 before use, so that the file stays small and is still exact.
"""

import pathlib
import tempfile

import numpy as np
import safetensors.numpy
import torch

# A torchvision whose compiled operators do not load would stop transformers from importing.
_LIBRARY = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    _LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers import (  # noqa: E402
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

OUT = pathlib.Path(__file__).with_name("models.npz")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
# Name: configuration, model, further settings.
MODELS = {
    "plain": (Dinov2Config, Dinov2Model, {}),
    "swiglu": (Dinov2Config, Dinov2Model, {"use_swiglu_ffn": True}),
    "registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, {"num_register_tokens": 4}),
}
SIDES = (42, 56, 84)  # 56 is the grid that the position embedding is for


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    arrays = {}
    images = {n: rng.integers(0, 256, (2, n, n, 3), dtype=np.uint8) for n in SIDES}
    for side, batch in images.items():
        arrays[f"images/{side}"] = batch
    for name, (config, kind, settings) in MODELS.items():
        model = kind(config(**TINY, **settings)).eval()
        with torch.no_grad():
            # Larger than at the start of training, so that every parameter shows in the output.
            for parameter in model.parameters():
                draw = torch.from_numpy(rng.normal(0.1, 0.3, parameter.shape))
                parameter.copy_(draw.to(torch.float16))
            for side, batch in images.items():
                pixels = ((batch / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
                output = model(pixel_values=torch.from_numpy(pixels))
                arrays[f"{name}/output/{side}"] = output.pooler_output.numpy()
        # Names as in published files, which differ from those of state_dict().
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            saved = safetensors.numpy.load_file(f"{folder}/model.safetensors")
        for key, value in saved.items():
            arrays[f"{name}/weights/{key}"] = value.astype(np.float16)
    line = rng.normal(size=(1, 1, 7, 7)).astype(np.float32)
    arrays["resize/input"] = line[0, 0]
    for size in (3, 7, 12):
        for antialias in (False, True):
            output = torch.nn.functional.interpolate(
                torch.from_numpy(line), size=(size, size), mode="bicubic", antialias=antialias
            )
            arrays[f"resize/{size}/{int(antialias)}"] = output[0, 0].numpy()
    scaled = torch.nn.functional.interpolate(
        torch.from_numpy(line), scale_factor=(4.1 / 7, 4.1 / 7), mode="bicubic"
    )
    arrays["resize/scale"] = scaled[0, 0].numpy()
    np.savez_compressed(OUT, **arrays)
    print(OUT.name, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
