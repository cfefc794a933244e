"""Arrays that both make_backbones_conv.py and the tests draw, so that no file has to hold them."""

import numpy as np

SIDES = (64, 67)
BATCH = 3


def draw(shapes):
    """Returns float32 arrays by name, for shapes by name; variances are positive, and none is at its first value."""
    arrays = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        normal = np.random.default_rng([7, number]).normal(size=shape)
        if name.endswith("running_var"):
            array = np.exp(0.5 * normal)
        elif len(shape) > 1 and "layer_scale" not in name:
            # As torch has them, [out, in, ...]; sqrt(2) keeps the scale through a ReLU.
            array = normal * (2 / np.prod(shape[1:])) ** 0.5
        else:
            array = 0.2 * normal + ("weight" in name or "layer_scale" in name)
        arrays[name] = array.astype(np.float32)
    return arrays


def images(side):
    """Returns scaled images, float32 [BATCH, side, side, 3]."""
    return np.random.default_rng([8, side]).normal(size=(BATCH, side, side, 3)).astype(np.float32)


def cotangent(shape):
    """Returns weights of the outputs, float32 of the shape, whose weighted sum is differentiated."""
    return np.random.default_rng(9).normal(size=shape).astype(np.float32)


def project(array):
    """Returns what stands for an array, float64 [5]: its norm, and products with four random directions over it."""
    array = np.asarray(array, np.float64).ravel()
    directions = np.random.default_rng(array.size).normal(size=(4, array.size))
    return np.append(directions @ array, np.linalg.norm(array))
