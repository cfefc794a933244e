"""Starts a command in several processes on this machine, which find each other over loopback.

    python launch/local.py --processes=2 --cpu_devices=4 -- \\
        python -m dml_jax.train --config=configs/quickstart.py --workdir=runs/two

Each process has `--cpu_devices` virtual CPU devices, or `--gpus` GPUs of its own (process 0 the first ones), or
whatever JAX gives it. The same config and the same seed train the same model, however many processes there are. If
one process fails, the others are stopped and its exit status is returned; SIGTERM and SIGINT are passed on.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time


def main() -> int:
    """Starts the processes, and returns the exit status of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, required=True)
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--cpu_devices", type=int, help="virtual CPU devices of each process")
    devices.add_argument("--gpus", type=int, help="GPUs of each process")
    parser.add_argument("--port", type=int, help="of process 0; a free one by default")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = [c for i, c in enumerate(options.command) if i or c != "--"]
    if command[:1] == ["python"]:
        # The one that runs now: another may not have the library.
        command[0] = sys.executable
    if not command or options.processes < 1:
        parser.error("a command after -- and at least one process are needed")

    port = options.port or free_port()
    children = [
        subprocess.Popen(command, env=environment(options, port, index))
        for index in range(options.processes)
    ]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: [c.send_signal(got) for c in children])
    return wait(children)


def free_port() -> int:
    """Returns a port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(options: argparse.Namespace, port: int, index: int) -> dict[str, str]:
    """Returns the environment of a process."""
    env = dict(os.environ)
    env["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    env["JAX_NUM_PROCESSES"] = str(options.processes)
    env["JAX_PROCESS_ID"] = str(index)
    # A step on CPUs allocates gigabytes anew, which huge pages make cheaper.
    env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    if options.cpu_devices:
        env["JAX_PLATFORMS"] = "cpu"
        flags = [
            f for f in env.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f
        ]
        flags.append(f"--xla_force_host_platform_device_count={options.cpu_devices}")
        env["XLA_FLAGS"] = " ".join(flags)
    if options.gpus:
        first = index * options.gpus
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(first, first + options.gpus)))
    return env


def wait(children: list[subprocess.Popen[bytes]]) -> int:
    """Waits for the processes, and stops the others once one has failed.

    Returns 0 where all ended well, else the status of the first that did not.
    """
    while True:
        codes = [child.poll() for child in children]
        failed = [code for code in codes if code]
        if failed:
            for child in children:
                child.terminate()
            for child in children:
                try:
                    child.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    child.kill()
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return 0
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
