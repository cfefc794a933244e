"""Much memory: large batches and a loss that compares images, as the 2025 study advises.

From about 256 images a batch losses on pairs overtake classification (Berton et al., 2025, section 3.4); four images of
a class (3.8), a rate of 1e-6 for DINOv2 (3.9), its class token as it is in place of a head (3.7).

    dml train --config=high_resource --config.data.path=photos --config.model.weights=dinov2_vitb14_pretrain.pth \\
        --workdir=runs/photos

Arguments: `backbone` (dinov2_b, dinov2_s), `batch_size` (512), `runlocal`. Where the backbone's memory is not there,
`--config.train.micro_batch=32` computes the same gradient in more time.
"""

from dml_jax import config as configs

from . import common
from .gmb2025 import BACKBONES


def get_config(arg=None):
    arg = configs.arguments(arg, backbone="dinov2_b", batch_size=512, runlocal=False)
    config = common.advised(common.chosen("backbone", BACKBONES, arg.backbone))
    config.loss = {"name": "multi_similarity", "alpha": 2.0, "beta": 50.0, "base": 0.5}
    config.miner = {"name": "multi_similarity", "epsilon": 0.1}
    config.sampler = {"name": "m_per_class", "m": 4}
    config.train.batch_size = arg.batch_size
    if arg.runlocal:
        common.runlocal(config)
    return config
