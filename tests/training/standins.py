"""A model and a loss small enough to see through, with the interfaces of the real ones."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from dml_jax.mean import Mean


def model(dim=3, width=16, pixels=4, dropout=0.0, depth=1):
    def init(key, backbone=None):
        keys = jax.random.split(key, depth + 2)
        body = {
            f"layer{i}": jax.random.normal(keys[i], (width, width)) / width**0.5
            for i in range(depth)
        }
        stem = jax.random.normal(keys[-2], (pixels, width)) / pixels**0.5
        head = jax.random.normal(keys[-1], (width, dim)) / width**0.5
        params = {"backbone": {"stem": stem, **body}, "head": {"kernel": head}}
        return {"params": params, "state": {"seen": jnp.zeros(())}}

    def apply(variables, images, *, train=False, key=None):
        params, state = variables["params"], variables["state"]
        x = images.reshape(len(images), -1).astype(jnp.float32) / 255 - 0.5
        x = x @ params["backbone"]["stem"]
        for i in range(depth):
            x = jnp.tanh(x @ params["backbone"][f"layer{i}"])
        if train and dropout:
            x = x * jax.random.bernoulli(key, 1 - dropout, x.shape)
        seen = state["seen"] + images.astype(jnp.float32).mean()
        return x @ params["head"]["kernel"], {"seen": seen} if train else state

    return SimpleNamespace(init=init, apply=apply, dim=dim, image_size=2, channels=1)


def loss(weight=True, poison=None):
    """Mean square distance of all pairs with unlike labels from 1: no sum over parts of a batch equals it."""

    def init(key, num_classes, dim):
        return {"params": {"weights": jnp.full((dim,), 2.0)}} if weight else {}

    def apply(variables, embeddings, labels, *, key=None, block=None, references="replicated"):
        scale = variables["params"].get("weights", jnp.ones(embeddings.shape[1]))
        e = embeddings * scale[None]
        squares = ((e[:, None] - e[None]) ** 2).sum(-1)
        unlike = labels[:, None] != labels[None]
        total = jnp.where(unlike, (squares - 1) ** 2, squares).sum()
        if poison is not None:
            total = jnp.where((labels == poison).any(), jnp.nan, total)
        return Mean(total, jnp.float32(len(e) ** 2), {"unlike": unlike.mean()}), {}

    return SimpleNamespace(init=init, apply=apply, pairwise=True)
