"""Files of weights: what is read back, and what is refused."""

import jax
import numpy as np
import pytest

from dml_jax import checkpoints, models
from dml_jax.errors import UserError
from dml_jax.trees import flatten

SMALL = {"width": 8, "depth": 1, "image_size": 16}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A backbone's parameters by path, and a function that writes some as a file."""
    backbone = models.get("convnet", **SMALL).init(jax.random.key(3))["params"]["backbone"]
    folder = tmp_path_factory.mktemp("weights")

    def write(arrays):
        np.savez(folder / "w.npz", **arrays)
        return folder / "w.npz"

    return flatten(backbone), write


def test_init_takes_the_backbone_from_the_file(saved):
    flat, write = saved
    model = models.get("convnet", weights=write(flat), embedding_dim=4, **SMALL)
    params = model.init(jax.random.key(0))["params"]
    for path, array in flatten(params["backbone"]).items():
        np.testing.assert_array_equal(array, flat[path])
    drawn = models.get("convnet", embedding_dim=4, **SMALL).init(jax.random.key(0))["params"]
    np.testing.assert_array_equal(params["head"]["kernel"], drawn["head"]["kernel"])
    assert not np.array_equal(drawn["backbone"]["stem"]["kernel"], flat["stem/kernel"])


def test_missing_and_left_over_keys_and_wrong_shapes(saved):
    flat, write = saved

    def fails(arrays, match):
        model = models.get("convnet", weights=write(arrays), **SMALL)
        with pytest.raises(UserError, match=match) as error:
            model.init(jax.random.key(0))
        assert "w.npz for convnet" in str(error.value) and "\n" not in str(error.value)

    fails({k: v for k, v in flat.items() if k != "stem/kernel"}, "missing: 'stem/kernel'$")
    fails({**flat, "stem/bias": np.zeros(8)}, "not expected: 'stem/bias'$")
    fails(
        {k: v for k, v in flat.items() if k.startswith("stem")},
        "missing: 'stage_0_0/kernel', 'stage_0_0/norm/bias', .* and 6 more",
    )
    fails(
        {**flat, "stem/kernel": np.zeros((4, 4, 3, 8))},
        r"'stem/kernel' has shape \(4, 4, 3, 8\), not \(4, 4, 1, 8\)",
    )


def test_mobilenet_weights_of_another_width(tmp_path):
    model = models.get("mobilenet_v2", image_size=32, weights=tmp_path / "w.npz")
    shapes = jax.eval_shape(model.without_weights().init, jax.random.key(0))["params"]["backbone"]
    flat = {k: np.zeros(v.shape, np.float32) for k, v in flatten(shapes).items()}
    flat["block_03/depthwise/kernel"] = np.zeros((3, 3, 144, 1), np.float32)
    np.savez(tmp_path / "w.npz", **flat)
    with pytest.raises(UserError, match=r"'block_03/depthwise/kernel' has shape \(3, 3, 144, 1\)"):
        model.init(jax.random.key(0))


def test_the_run_of_another_model_is_called_what_it_is(tmp_path):
    """A checkpoint of ours whose arrays have none of the model's names."""
    variables = models.get("convnet", width=8, depth=1).init(jax.random.key(0))
    (tmp_path / "config.json").write_text('{"model": {"name": "convnet"}}')
    saver = checkpoints.Checkpoints.open(str(tmp_path / "checkpoints"), ("best",))
    saver.save_best(3, variables, {}, "best")
    saver.close()
    vit = models.get("vit", size="s", weights=str(tmp_path))
    with pytest.raises(
        UserError, match="are of a run of model 'convnet'; those of a run of model 'vit'"
    ):
        vit.read_backbone()
