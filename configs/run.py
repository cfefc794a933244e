"""The configuration of a run that there is, to change some of its fields.

python -m dml_jax.evaluate --workdir=DIR --config=configs/run.py:DIR --config.evaluation.map=tsne
"""

from dml_jax import config as configs


def get_config(arg=None):
    if not arg:
        raise ValueError("the folder of a run is missing; --config=configs/run.py:DIR is accepted")
    return configs.stored(arg)
