"""Little memory: small batches and a classification loss, as the 2025 study advises.

Classification losses work with very small batches (Berton et al., 2025, section 3.4) and whatever number of images of a
class (3.8); their weights want a rate of about 1.0, a million times that of the backbone (3.9).

    dml train --config=low_resource --config.data.path=photos --config.model.weights=dinov2_vits14_pretrain.pth \\
        --workdir=runs/photos

Arguments: `backbone` (dinov2_s, dinov2_b), `batch_size` (32), `runlocal`.
"""

from dml_jax import config as configs

from . import common
from .gmb2025 import BACKBONES


def get_config(arg=None):
    arg = configs.arguments(arg, backbone="dinov2_s", batch_size=32, runlocal=False)
    config = common.advised(common.chosen("backbone", BACKBONES, arg.backbone))
    config.loss = {"name": "cos_face", "margin": 0.35, "scale": 64.0}
    config.sampler = {"name": "random"}
    config.train.batch_size = arg.batch_size
    if arg.runlocal:
        common.runlocal(config)
    return config
