"""Bad input to losses, miners, distances and reducers: one line that says what is accepted."""

import jax
import jax.numpy as jnp
import pytest

from dml_jax import UserError, distances, losses, miners, reducers

X, Y = jnp.ones((4, 3)), jnp.asarray([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.get("multi_similarty"), "did you mean 'multi_similarity'"),
        (lambda: losses.get("zzz"), "accepted: angular, arc_face"),
        (lambda: losses.get("nt_xent", temprature=0.1), "did you mean 'temperature'"),
        (lambda: losses.get("nt_xent", miner="batch_hrd"), "did you mean 'batch_hard'"),
        (lambda: losses.get("nt_xent", miner=3), "miner is 3; accepted: a name"),
        (
            lambda: losses.get("nt_xent", reducer="divisor"),
            "accepted: avg_non_zero, class_weighted, mean",
        ),
        (lambda: losses.get("cos_face", distance="lp"), "accepted: cosine"),
        (lambda: losses.get("cos_face", relation="matrix"), "relation 'hierarchy' or 'label'"),
        (lambda: losses.get("vic_reg", distance="lp"), "has no use for a distance, which is 'lp'"),
        (lambda: losses.get("histogram", reducer="sum"), "no use for a reducer"),
        (
            lambda: losses.get("fast_ap", distance={"name": "lp", "normalize_embeddings": False}),
            "defined for normalised vectors",
        ),
        (lambda: losses.get("ranked_list", margin=0.4), "needs a value for 'Tn'"),
        (lambda: miners.get("triplet_margin", type_of_triplets="semi"), "'semihard'"),
        (
            lambda: miners.get("batch_hard", distance="euclid"),
            "accepted: cosine, dot_product, lp, snr",
        ),
        (lambda: distances.get("lp", pow=2), "did you mean 'power'"),
        (lambda: reducers.get("threshold"), "'low' or 'high'"),
        (lambda: reducers.get("threshold", low=2, high=1), "low must be smaller"),
    ],
)
def test_names(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(embeddings=X[0]), r"accepted: \[batch, dim\]"),
        (dict(embeddings=X.astype(int)), "accepted: a float type"),
        (dict(labels=Y[:3]), r"takes \(4,\)"),
        (dict(ref_labels=Y), "without ref_embeddings"),
        (dict(ref_embeddings=X), r"ref_labels have shape None; accepted: \(4,\)"),
        (dict(ref_embeddings=X[:, :2], ref_labels=Y), r"accepted: \[m, 3\]"),
        (dict(valid=Y[:2] > 0), r"accepted: \(4,\)"),
        (dict(block=0), "accepted: a positive integer"),
        (dict(block=2.0), "accepted: a positive integer"),
    ],
)
def test_arrays(arguments, words):
    with pytest.raises(UserError, match=words):
        losses.get("contrastive").apply({}, **(dict(embeddings=X, labels=Y) | arguments))


def test_class_weights_take_no_references():
    with pytest.raises(UserError, match="takes no ref_embeddings"):
        losses.get("cos_face").apply({}, X, Y, ref_embeddings=X, ref_labels=Y)


@pytest.mark.parametrize(
    ("name", "hyper", "words"),
    [
        (
            "pnp",
            dict(variant="Du"),
            "variant of loss 'pnp' is 'Du'; accepted: 'O' or 'Ds'",
        ),
        ("ranked_list", dict(margin=0.4, Tn=10, imbalance=1.5), "of at least 0 and of at most 1"),
        ("histogram", dict(n_bins=10, delta=0.1), "accepted: delta = 2 / n_bins"),
        ("vic_reg", {}, r"shape None; accepted: \(4, 3\), the second view"),
        ("manifold", dict(lambdaC=-1.0), "a number of at least 0"),
    ],
)
def test_values_of_hyper_parameters(name, hyper, words):
    with pytest.raises(UserError, match=words):
        loss = losses.get(name, **hyper)
        loss.apply(loss.init(jax.random.key(0), 5, 3), X, Y)
