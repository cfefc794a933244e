"""What the miners of PyTorch Metric Learning 2.9 choose in float64, for tests/miners/test_choices.py.

    python -m tests.golden.make_miners

in an environment with torch and pytorch-metric-learning==2.9.0; the tests need neither. Batches have ties:
duplicates within a class, and across classes. Embeddings are normalised, because PML's angular miner
measures the angles of the embeddings as they are.
"""

import pathlib

import numpy as np
import pytorch_metric_learning as pml
import torch
from pytorch_metric_learning import distances, miners

from tests.miners import table

# No more than 25: then torch.cdist takes differences, and duplicates have distance 0.
LABELS = np.array([3, 0, 1, 0, 2, 4, 0, 1, 5, 2, 0, 1, 3, 0, 2, 1, 0, 4, 1, 3, 2, 6, 0, 1])
REF_LABELS = np.array([0, 1, 2, 7, 0, 1, 3, 8, 2, 0, 6, 1, 7, 3, 0])
DIM = 6
CLASSES = {
    "angular": miners.AngularMiner,
    "batch_easy_hard": miners.BatchEasyHardMiner,
    "batch_hard": miners.BatchHardMiner,
    "embeddings_already_packaged_as_triplets": miners.EmbeddingsAlreadyPackagedAsTriplets,
    "hdc": miners.HDCMiner,
    "multi_similarity": miners.MultiSimilarityMiner,
    "pair_margin": miners.PairMarginMiner,
    "triplet_margin": miners.TripletMarginMiner,
}
DISTANCES = {"cosine": distances.CosineSimilarity, "lp": distances.LpDistance}


def batches() -> dict[str, tuple[np.ndarray, ...]]:
    """name -> embeddings and labels, and those of references where there are any."""
    rng = np.random.default_rng(11)
    centers = rng.normal(size=(9, DIM))
    x = centers[LABELS] + 0.8 * rng.normal(size=(len(LABELS), DIM))
    x[3], x[7], x[18] = x[1], x[4], x[15]
    refs = centers[REF_LABELS] + 0.8 * rng.normal(size=(len(REF_LABELS), DIM))
    refs[2], refs[4] = refs[5], x[6]
    x, refs = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, refs))
    return {
        "batch": (x, LABELS),
        "one class": (x, np.zeros_like(LABELS)),
        "no positives": (x, np.arange(len(LABELS))),
        "references": (x, LABELS, refs, REF_LABELS),
    }


def main() -> None:
    assert pml.__version__ == "2.9.0", pml.__version__
    torch.set_default_dtype(torch.float64)
    out = {}
    for kind, arrays in batches().items():
        out |= {f"{kind}:{i}": array for i, array in enumerate(arrays)}
        for name, hyper in table.EXACT.items():
            hyper = dict(hyper)
            if "distance" in hyper:
                hyper["distance"] = DISTANCES[hyper["distance"]]()
            miner = CLASSES[name.partition("/")[0]](**hyper)
            chosen = miner(*(torch.tensor(array) for array in arrays))
            parts = {"": chosen} if len(chosen) == 3 else {"/pos": chosen[:2], "/neg": chosen[2:]}
            for side, part in parts.items():
                rows = np.stack([np.asarray(index) for index in part], 1)
                rows = rows[np.lexsort(rows.T[::-1])]
                out[f"{kind}:{name}{side}"] = rows.astype(np.int8)
    path = pathlib.Path(__file__).parent / "miners.npz"
    np.savez_compressed(path, **out)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(out)} arrays")


if __name__ == "__main__":
    main()
