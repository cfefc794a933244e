"""What the state, the losses and the class weights take of each device's memory, by XLA's own analysis.

    python benchmarks/scale.py [--quick] [--only TEXT]

Programs are compiled for the CPU and for virtual devices of it, and not run: the columns are XLA's memory analysis of
the compiled program, for one device. "arguments" are arrays that lie on it before, "temporary" what the program needs
beside them. The loss of a batch (value and gradient, 128 dimensions) by its size and the block; the same with 512
dimensions on several devices, where the references are replicated or sharded; a step
of normalized_softmax inside `partial_fc` with Adam (512 dimensions, a batch of 4,096) by classes on 64 devices; the
state of a ViT-B/14 with Adam by `train.fsdp` on 8 devices.
"""

import argparse
import os
import subprocess
import sys

from machine import record

COLUMNS = ["what", "devices", "arguments MiB", "temporary MiB"]
TITLE = "Memory of a device, by compiled programs"
DIM = 512


def loss_case(
    batch: int, block: int, dim: int = 128, layout: str = "replicated"
) -> tuple[float, float]:
    """Arguments and temporaries of the value and gradient of multi_similarity, in MiB."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from dml_jax import losses
    from dml_jax.mesh import make_mesh

    loss, mesh = losses.get("multi_similarity", miner="multi_similarity"), make_mesh()

    def value(x, labels):
        return loss.apply({}, x, labels, block=block, references=layout)[0].compute()

    rows = NamedSharding(mesh, P("data"))
    x = jax.ShapeDtypeStruct((batch, dim), jnp.float32, sharding=rows)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)
    with jax.set_mesh(mesh):
        return analysed(jax.jit(jax.value_and_grad(value)).lower(x, labels))


def classes_case(classes: int, one_of: int, sparse: bool) -> tuple[float, float]:
    """Those of a step of class weights sharded over all devices, with Adam."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from dml_jax import losses
    from dml_jax.mesh import make_mesh
    from dml_jax.training import optim, sharding
    from dml_jax.training.schedules import RunLength

    mesh, batch = make_mesh(), 4096
    inner = {"name": "normalized_softmax"}
    loss = losses.get("partial_fc", loss=inner, one_of=one_of)
    group = {"match": ".*", "name": "adam", "lr": 0.1, "sparse": sparse}
    tx = optim.partition(optim.groups_of({"loss": group}), RunLength(10, 10))
    params = {"loss": {"weights": jax.ShapeDtypeStruct((classes, DIM), jnp.float32)}}
    state = {"params": params, "opt": jax.eval_shape(tx.init, params)}
    at = sharding.of_state(state, mesh, sharding.Rule())
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, at)
    rows = NamedSharding(mesh, P("data"))
    x = jax.ShapeDtypeStruct((batch, DIM), jnp.float32, sharding=rows)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)

    def step(state, x, labels, key):
        def value(params):
            variables = {"params": params["loss"]}
            key_of = jax.random.wrap_key_data(key)
            return loss.apply(variables, x, labels, key=key_of, block=4096)[0].compute()

        gradients = jax.grad(value)(state["params"])
        updates, opt = tx.update(gradients, state["opt"], state["params"])
        params = jax.tree.map(lambda p, u: p + u, state["params"], updates)
        return {"params": params, "opt": opt}

    with jax.set_mesh(mesh):
        key = jax.ShapeDtypeStruct((2,), jnp.uint32)
        compiled = jax.jit(step, donate_argnums=0, out_shardings=at)
        return analysed(compiled.lower(state, x, labels, key))


def state_case(fsdp: int) -> tuple[float, float]:
    """The state of a ViT-B/14 with Adam; temporaries of making it."""
    import jax

    from dml_jax import losses, models
    from dml_jax.mesh import make_mesh
    from dml_jax.training import optim, sharding
    from dml_jax.training import state as states
    from dml_jax.training.schedules import RunLength

    model = models.get("vit", size="b")
    group = {"match": ".*", "name": "adam", "lr": 0.1}
    tx = optim.partition(optim.groups_of({"all": group}), RunLength(10, 10))
    mesh = make_mesh(fsdp=fsdp)

    def init():
        return states.init(model, losses.get("multi_similarity"), tx, 0, 0)

    at = sharding.of_state(jax.eval_shape(init), mesh, sharding.Rule())
    with jax.set_mesh(mesh):
        memory = jax.jit(init, out_shardings=at).lower().compile().memory_analysis()
    return memory.output_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20


def analysed(lowered) -> tuple[float, float]:
    memory = lowered.compile().memory_analysis()
    return memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20


CASES = {
    **{
        f"loss of {batch:,} anchors, block {block}": (1, f"loss_case({batch}, {block})")
        for batch, block in (
            (4096, 4096),
            (4096, 256),
            (65536, 256),
            (2**20, 256),
            (2**20, 64),
        )
    },
    **{
        f"loss of {batch:,} anchors x 512, block 64, {layout}": (
            devices,
            f"loss_case({batch}, 64, 512, {layout!r})",
        )
        for batch, devices in ((65536, 8), (2**18, 16))
        for layout in ("replicated", "sharded")
    },
    **{
        f"{classes:,} classes, one of {one_of}, sparse={sparse}": (
            64,
            f"classes_case({classes}, {one_of}, {sparse})",
        )
        for classes, one_of, sparse in (
            (10_240, 1, False),
            (1_024_000, 1, False),
            (1_024_000, 10, True),
            (10_240_000, 1, False),
            (10_240_000, 10, False),
            (10_240_000, 10, True),
        )
    },
    **{f"state of ViT-B/14, fsdp={n}": (8, f"state_case({n})") for n in (1, 2, 4, 8)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest case of each kind")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(*eval(given.case))
        return
    for name, (devices, call) in CASES.items():
        if given.only and given.only not in name:
            continue
        if given.quick and not name.startswith(
            ("loss of 4,096", "10,240 ", "state of ViT-B/14, fsdp=8")
        ):
            continue
        flags = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, __file__, f"--case={call}"],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        arguments, temporary = map(float, done.stdout.split()[-2:])
        record(
            "scale", TITLE, COLUMNS, [name, str(devices), f"{arguments:.0f}", f"{temporary:.0f}"]
        )


if __name__ == "__main__":
    main()
