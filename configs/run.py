"""The configuration of a run that there is, to change some of its fields.

python -m dml_jax.evaluate --workdir=DIR --config=configs/run.py:DIR --config.evaluation.map=tsne
"""

from dml_jax import UserError, run_folder


def get_config(arg=None):
    if not arg:
        raise UserError("the folder of a run is missing; --config=configs/run.py:DIR is accepted")
    return run_folder.read_config(arg)
