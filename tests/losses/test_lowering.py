"""Every loss with its kinds of miner lowers for GPUs and TPUs, on a machine that has neither."""

import jax
import jax.numpy as jnp
from jax import export

from dml_jax import losses
from tests.losses import table
from tests.losses.loops import common
from tests.losses.test_laws import LABELS, batch, each_case, labels_of, make, references, variables

PLATFORMS = ("cuda", "tpu")


def lowered(function, *arguments):
    """The program for both platforms, as text."""
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return exported.mlir_module()


def refused(text):
    """What an accelerator does badly or not at all: float64, and calls of the host."""
    return [word for word in ("f64", "callback", "outfeed") if word in text]


@each_case
def test_value_and_gradient(name, miner):
    loss, x, labels = make(name, miner), jnp.asarray(batch()), labels_of(name, LABELS)
    made = variables(loss)
    block = 8 if loss.takes_block else None

    def value(params, x):
        of = {**made, "params": params}
        more = dict(block=block, key=common.KEY) | references(name, x)
        return loss.apply(of, x, labels, **more)[0].compute()

    text = lowered(jax.value_and_grad(value, argnums=(0, 1)), made.get("params", {}), x)
    assert not refused(text)


def test_the_check_can_fail(x64):
    def value(x):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((3,), jnp.float64), x)

    found = jax.jit(value).lower(jnp.ones(3, jnp.float64)).as_text()
    assert refused(found) == ["f64", "callback"]


def test_a_sample_of_the_classes():
    loss = losses.get("partial_fc", loss="cos_face", one_of=3)
    x, labels = jnp.asarray(batch()), jnp.asarray(table.LABELS)
    text = lowered(
        lambda v, x: loss.apply(v, x, labels, key=common.KEY)[0].compute(), variables(loss), x
    )
    assert not refused(text)
