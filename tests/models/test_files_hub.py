"""Weights of the Hugging Face Hub: from its cache without a network, from a server, and by hand."""

import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy

from dml_jax.errors import UserError
from dml_jax.models.files import open_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
COMMIT, OTHER = "0123456789" * 4, "f" * 40
# The package reads its settings when it is imported, so each test needs a process of its own.
PROGRAM = """
import json, sys, time
time.sleep = lambda seconds: None  # between tries to reach a server
from dml_jax.errors import UserError
from dml_jax.models.files import open_weights
found = {}
for address in sys.argv[1:]:
    try:
        with open_weights(address) as arrays:
            found[address] = {k: v.tolist() for k, v in arrays.items()}
    except UserError as error:
        found[address] = str(error)
print(json.dumps(found))
"""


def ask(home, addresses, **settings):
    """What opening each address gives, the arrays or the text of the error, in a process with these settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *addresses],
        env={**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **settings},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def values(arrays):
    return {k: v.tolist() for k, v in arrays.items()}


def cached(home, repo, files, commit=COMMIT, refs=("main",)):
    """Writes files into the cache as the package lays it out."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    for ref in refs:
        (root / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    for name, data in files.items():
        blob = root / "blobs" / f"{commit[:4]}-{name.replace('/', '-')}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        path = root / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(blob)


def sharded(prefix=""):
    shards = {f"s{i}.safetensors": {name: ARRAYS[name]} for i, name in enumerate(ARRAYS)}
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    return {
        f"{prefix}model.safetensors.index.json": json.dumps(index).encode(),
        **{f"{prefix}{shard}": safetensors.numpy.save(held) for shard, held in shards.items()},
    }


def test_cache_without_a_network(tmp_path):
    whole = safetensors.numpy.save(ARRAYS)
    other = safetensors.numpy.save({"other": ARRAYS["b"]})
    old = (GOLDEN / "weights_training_old.pth").read_bytes()
    cached(tmp_path, "own/whole", {"model.safetensors": whole, "sub/x.pth": old})
    cached(tmp_path, "own/whole", {"model.safetensors": other}, OTHER, ("v2", "refs/pr/1"))
    cached(tmp_path, "own/torch", {"pytorch_model.bin": old})
    cached(tmp_path, "own/sharded", sharded())
    cached(tmp_path, "own/part", {k: v for k, v in sharded().items() if k != "s1.safetensors"})
    expected = {
        "hf://own/whole": values(ARRAYS),
        "hf://own/whole/model.safetensors": values(ARRAYS),
        f"hf://own/whole@{COMMIT}": values(ARRAYS),
        "hf://own/whole@v2": {"other": [1, 1, 1, 1]},
        "hf://own/whole@refs%2Fpr%2F1": {"other": [1, 1, 1, 1]},
        f"hf://own/whole@{OTHER}/model.safetensors": {"other": [1, 1, 1, 1]},
        "hf://own/sharded": values(ARRAYS),
    }
    torch = ["hf://own/torch", "hf://own/whole/sub/x.pth"]
    absent = ["hf://own/none", "hf://own/whole@v3/sub/x.pth", "hf://own/part"]
    unreachable = "http://127.0.0.1:9"
    manual = (
        f"download {unreachable}/own/none/resolve/main/model.safetensors with a browser",
        "weights=FOLDER/model.safetensors",
    )
    for settings in ({"HF_HUB_OFFLINE": "1"}, {}):
        found = ask(tmp_path, [*expected, *torch, *absent], HF_ENDPOINT=unreachable, **settings)
        assert {k: found[k] for k in expected} == expected
        assert all(next(iter(found[k])) == "0.weight" for k in torch)
        for address in absent:
            text = found[address]
            assert address in text and "cannot be reached" in text and "\n" not in text, text
        assert all(part in found["hf://own/none"] for part in manual)
        assert "own/whole/resolve/v3/sub/x.pth" in found[absent[1]]
        assert f"own/part/resolve/{COMMIT}/s1.safetensors" in found[absent[2]]
        assert ("OfflineModeIsEnabled" in text) == ("HF_HUB_OFFLINE" in settings), text


FILES = {
    "/own/whole/resolve/main/model.safetensors": safetensors.numpy.save(ARRAYS),
    "/own/whole/resolve/main/note.txt": b"hello",
    "/own/torch/resolve/main/pytorch_model.bin": (GOLDEN / "weights_training_zip.pth").read_bytes(),
    # What the branch has now, and what it had when its index was read.
    **{f"/own/sharded/resolve/dev/sub/{k}": v for k, v in sharded().items() if "index" in k},
    **{f"/own/sharded/resolve/{COMMIT}/sub/{k}": v for k, v in sharded().items()},
}
# Statuses and the codes that the Hub gives with them, by the beginnings of paths.
REFUSED = {
    "/own/gated/": (403, "GatedRepo"),
    "/own/private/": (401, "RepoNotFound"),
    "/own/absent/": (404, "RepoNotFound"),
    "/own/whole/resolve/v9/": (404, "RevisionNotFound"),
    "/own/broken/": (500, None),
}
ASKED = []


class Server(http.server.BaseHTTPRequestHandler):
    """A Hub of a few models."""

    def do_HEAD(self, body=False):
        ASKED.append(self.path)
        data = FILES.get(self.path)
        status, code = next(
            (what for path, what in REFUSED.items() if self.path.startswith(path)),
            (404, "EntryNotFound"),
        )
        self.send_response(200 if data is not None else status)
        if data is not None:
            self.send_header("ETag", f'"{abs(hash(data)):040x}"')
        elif code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if body and data is not None:
            self.wfile.write(data)

    def do_GET(self):
        self.do_HEAD(body=True)

    def log_message(self, *_):
        pass


def test_downloads_and_refusals(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        expected = {
            "hf://own/gated": (
                "licence has to be accepted at",
                "hf auth login",
                "by hand: download",
            ),
            "hf://own/private": ("there is no", "own/private", "hf auth login"),
            "hf://own/absent": ("there is no", "own/absent", "accepted: hf://OWNER/NAME"),
            "hf://own/whole@v9": ("has no revision 'v9'",),
            "hf://own/whole/gone.bin": ("has no gone.bin at revision main",),
            "hf://own/empty@dev": (
                "has no model.safetensors, ",
                "pytorch_model.bin",
                "revision dev",
            ),
            "hf://own/broken": ("500", "by hand: download"),
            "hf://own/whole/note.txt": ("a text file", "note.txt"),
        }
        good = {
            "hf://own/whole": values(ARRAYS),
            "hf://own/sharded@dev/sub/model.safetensors.index.json": values(ARRAYS),
        }
        endpoint = f"http://127.0.0.1:{server.server_port}"
        found = ask(tmp_path, [*expected, *good, "hf://own/torch"], HF_ENDPOINT=endpoint)
        assert {k: found[k] for k in good} == good
        assert next(iter(found["hf://own/torch"])) == "0.weight"
        for address, parts in expected.items():
            text = found[address]
            assert all(part in text for part in parts) and "\n" not in text, text
            assert address in text or "note.txt" in address
        # They lie in the cache now, and nothing is asked of the server again.
        count = len(ASKED)
        again = ask(tmp_path, [*good, "hf://own/torch"], HF_ENDPOINT=endpoint)
        assert {k: again[k] for k in good} == good and len(ASKED) == count > len(good)
        server.shutdown()


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://name",
        "hf://own/",
        "hf://own/name@",
        "hf://own/name@a@b",
        "hf://own/name/../x",
    ],
)
def test_addresses_that_are_none(address):
    with pytest.raises(UserError, match=r"no address of the Hub; accepted: hf://OWNER/NAME"):
        open_weights(address).__enter__()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    match = r'pip install "dml_jax\[hub\]"; by hand: download https://.*/own/x/resolve/v1/w.bin with a browser'
    with pytest.raises(UserError, match=match):
        open_weights("hf://own/x@v1/w.bin").__enter__()
