"""Labels that are partly wrong: NT-Xent, which the 2025 study found the most robust of those that compare images.

Up to a third of wrong labels cost little there (Berton et al., 2025, section 3.5): more images, labelled less
carefully, are worth more than few.

    dml train --config=noisy_labels --config.data.path=photos --config.model.weights=dinov2_vitb14_pretrain.pth \\
        --workdir=runs/photos

Arguments: `backbone` (dinov2_b, dinov2_s), `batch_size` (256), `runlocal`.
"""

from dml_jax import config as configs

from . import common
from .gmb2025 import BACKBONES


def get_config(arg=None):
    arg = configs.arguments(arg, backbone="dinov2_b", batch_size=256, runlocal=False)
    config = common.advised(common.chosen("backbone", BACKBONES, arg.backbone))
    config.loss = {"name": "nt_xent", "temperature": 0.07}
    config.sampler = {"name": "m_per_class", "m": 4}
    config.train.batch_size = arg.batch_size
    if arg.runlocal:
        common.runlocal(config)
    return config
