"""What the launchers put into the environment of the processes that they start."""

import argparse
import importlib.util
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "launch"


def environment(monkeypatch, given):
    """The environment of process 1, made by launch/local.py where the caller's has GLIBC_TUNABLES=given."""
    spec = importlib.util.spec_from_file_location("local", FOLDER / "local.py")
    local = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(local)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    options = argparse.Namespace(processes=2, cpu_devices=None, gpus=2)
    return local.environment(options, 1234, 1)


def test_a_process_has_its_place_and_its_gpus(monkeypatch):
    env = environment(monkeypatch, None)
    assert env["JAX_PROCESS_ID"] == "1" and env["JAX_COORDINATOR_ADDRESS"] == "127.0.0.1:1234"
    assert env["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_huge_pages_but_where_the_user_says_otherwise(monkeypatch):
    assert environment(monkeypatch, None)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    other = "glibc.malloc.arena_max=2"
    assert environment(monkeypatch, other)["GLIBC_TUNABLES"] == other


@pytest.mark.parametrize("name", ["gke.yaml", "slurm.sh", "tpu_pod.sh"])
def test_every_launcher_asks_for_them(name):
    text = (FOLDER / name).read_text()
    assert "GLIBC_TUNABLES" in text and "glibc.malloc.hugetlb=1" in text
