"""Steps after training that change what is stored or how it is ranked; none of them looks at labels.

Embeddings are compared by cosine here. Each step gives other embeddings, or ids [q, k] of what it ranks first, as
`neighbours` does; `query_ids` and `gallery_ids` likewise keep a query from finding itself.
"""

from dml_jax.evaluation.postprocess.comparison import FITTED, STEPS, after_training, check_steps
from dml_jax.evaluation.postprocess.compression import Quantized, binary, int8, rescored, signs
from dml_jax.evaluation.postprocess.expansion import alpha_query_expansion, database_augmentation
from dml_jax.evaluation.postprocess.reranking import k_reciprocal
from dml_jax.evaluation.postprocess.whitening import Whitening, whitening

__all__ = [
    "FITTED",
    "STEPS",
    "Quantized",
    "Whitening",
    "after_training",
    "alpha_query_expansion",
    "binary",
    "check_steps",
    "database_augmentation",
    "int8",
    "k_reciprocal",
    "rescored",
    "signs",
    "whitening",
]
