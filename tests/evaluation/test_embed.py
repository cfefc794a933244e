"""Embedding a split: order, padding, devices, processes."""

import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dml_jax.evaluation import embed, pixels


def split(size=21, batch=8, seed=0):
    """Images, labels and shuffled ids of a split, and its batches, the last one padded with junk."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 4, 3, 1)).astype(np.uint8)
    labels = rng.integers(0, 5, size).astype(np.int32)
    ids = rng.permutation(1000)[:size].astype(np.int32)

    def batches():
        for start in range(0, size, batch):
            rows = np.arange(start, start + batch)
            valid = rows < size
            rows = np.where(valid, rows, 0)
            yield {"image": images[rows], "label": labels[rows], "id": ids[rows], "valid": valid}

    return images, labels, ids, batches


def apply(variables, images):
    return images.reshape(len(images), -1).astype(jnp.float32) @ variables["w"]


VARIABLES = {"w": np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)}


@pytest.mark.parametrize("devices", [None, 1, 8])
@pytest.mark.parametrize("batch", [8, 5, 21])
def test_order_and_padding(devices, batch):
    images, labels, ids, batches = split(batch=batch)
    if devices is None:
        found = embed(apply, VARIABLES, batches())
    else:
        auto = (jax.sharding.AxisType.Auto,)
        with jax.set_mesh(jax.make_mesh((devices,), ("data",), axis_types=auto)):
            found = embed(apply, VARIABLES, batches())
    order = np.argsort(ids)
    expected = images.reshape(21, -1).astype(np.float32) @ VARIABLES["w"]
    np.testing.assert_allclose(found[0], expected[order], rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(found[1], labels[order])
    np.testing.assert_array_equal(found[2], ids[order])
    assert [a.dtype for a in found] == [np.float32, np.int64, np.int64]
    # Control: the order of arrival is another.
    assert np.abs(found[0] - expected).max() > 1


def test_rows_are_split_over_the_devices():
    seen = []

    def watch(variables, images):
        jax.debug.inspect_array_sharding(images, callback=seen.append)
        return apply(variables, images)

    auto = (jax.sharding.AxisType.Auto,)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=auto)):
        embed(watch, VARIABLES, split()[3]())
    assert all(sharding.shard_shape((8, 4, 3, 1)) == (1, 4, 3, 1) for sharding in seen) and seen


def test_one_compilation():
    traced = []

    def counted(variables, images):
        traced.append(1)
        return apply(variables, images)

    for seed in range(2):
        embed(counted, VARIABLES, split(seed=seed)[3]())
    assert len(traced) == 1


def test_pixels():
    images, _, ids, batches = split()
    found, _, _ = pixels(batches())
    flat = images.reshape(21, -1)[np.argsort(ids)].astype(np.float64) / 255
    np.testing.assert_allclose(found, flat / np.linalg.norm(flat, axis=1, keepdims=True), rtol=1e-5)
    black = {"image": np.zeros((2, 3, 3, 3), np.uint8), "label": np.zeros(2), "id": np.arange(2)}
    assert not pixels([black | {"valid": np.ones(2, bool)}])[0].any()


def test_large_ids():
    _, _, ids, batches = split()
    large = [batch | {"id": batch["id"].astype(np.int64) + (1 << 40)} for batch in batches()]
    expected = np.sort(ids).astype(np.int64) + (1 << 40)
    auto = (jax.sharding.AxisType.Auto,)
    np.testing.assert_array_equal(embed(apply, VARIABLES, large)[2], expected)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=auto)):
        np.testing.assert_array_equal(embed(apply, VARIABLES, large)[2], expected)


def test_errors():
    _, _, _, batches = split()
    with pytest.raises(ValueError, match="no batch"):
        embed(apply, VARIABLES, [])
    nothing = [batch | {"valid": np.zeros(8, bool)} for batch in batches()]
    with pytest.raises(ValueError, match="no valid row"):
        embed(apply, VARIABLES, nothing)
    with pytest.raises(ValueError, match=r"id \d+ occurs more than once"):
        embed(apply, VARIABLES, [*batches(), *batches()])


WORKER = """
    import sys
    import jax
    import numpy as np
    port, rank = sys.argv[1], int(sys.argv[2])
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, initialization_timeout=60)
    from dml_jax.evaluation import embed, evaluate_embeddings, neighbours

    assert jax.process_count() == 2 and jax.device_count() == 4

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (22, 6)).astype(np.uint8)
    about = np.stack([np.arange(22) % 4, rng.permutation(22) + (1 << 40)], axis=1)

    def batches():
        for start in range(0, 24, 6):  # six rows a step, three of each process
            rows = np.arange(start, start + 6)[3 * rank : 3 * rank + 3]
            valid = rows < 22
            rows = np.where(valid, rows, 0)
            label, ids = about[rows].T
            yield {"image": images[rows], "label": label, "id": ids, "valid": valid}

    auto = (jax.sharding.AxisType.Auto,)
    for mesh in (None, jax.make_mesh((4,), ("data",), axis_types=auto)):
        if mesh is not None:
            jax.set_mesh(mesh)
        found, labels, ids = embed(lambda variables, x: x.astype(np.float32), {}, batches())
        order = np.argsort(about[:, 1])
        np.testing.assert_array_equal(found, images[order])
        np.testing.assert_array_equal(labels, about[order, 0])
        np.testing.assert_array_equal(ids, np.arange(22) + (1 << 40))
    gallery = rng.normal(size=(203, 5)).astype(np.float32)
    labels = np.arange(203) % 50
    found = neighbours(gallery, gallery, 9, exclude_self=True)
    expected = neighbours(gallery, gallery, 9, exclude_self=True, backend="faiss")
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)
    assert evaluate_embeddings(gallery, labels) == evaluate_embeddings(
        gallery, labels, backend="faiss"
    )
    # So many that the search groups them.
    large = rng.normal(size=(6000, 5)).astype(np.float32)
    found = neighbours(large[:40], large, 9, exclude_self=True)
    expected = neighbours(large[:40], large, 9, exclude_self=True, backend="faiss")
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a, b)
    jax.distributed.shutdown()
    print("done")
"""


def test_two_processes(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = pathlib.Path(__file__).parents[2]
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(root)}
    workers = [
        subprocess.Popen(
            [sys.executable, script, port, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, output in zip(workers, outputs, strict=True):
        assert worker.returncode == 0 and "done" in output, output
