"""Networks by their name on the hub: the client library against a server on this machine, then without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import hashlib, http.server, json, os, sys, tempfile, threading
from pathlib import Path
sys.path[:0] = [ROOT, ROOT + "/tests"]
import numpy as np

COMMIT, requests = "0123456789abcdef" * 2 + "01234567", []
files = {}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def log_message(self, *_): pass
    def answer(self, with_body):
        requests.append(self.path)
        head, _, name = self.path.partition("/resolve/")
        revision, _, name = name.partition("/")
        is_known = head == "/owner/tiny" and revision in ("main", "v2", COMMIT)
        content = files.get(name) if is_known else None
        self.send_response(404 if content is None else 200)
        if content is None:
            code = "RepoNotFound" if head != "/owner/tiny" else "EntryNotFound" if is_known else "RevisionNotFound"
            self.send_header("X-Error-Code", code)
            content = b""
        else:
            self.send_header("ETag", '"' + hashlib.sha1(content).hexdigest() + '"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
cache = tempfile.mkdtemp()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": cache, "HF_HUB_DISABLE_XET": "1"}
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

from safetensors.numpy import save
from small import drawn_params
import prance_jax
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.zoo.formats.timm import to_timm

spec = ModelSpec(SearchSpace("mini", 12, 2.0, 3, (12,), (2.0,), (2,), head_dim=4), 8, 4, 5)
tensors = to_timm(drawn_params(spec), spec)
arguments = {"embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "patch_size": 4, "img_size": 8}
config = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": arguments}
config["pretrained_cfg"] = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "input_size": [3, 8, 8]}
files["config.json"] = json.dumps(config).encode()
files["model.safetensors"] = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})

def refused(name):
    try:
        prance_jax.create_model(name)
    except prance_jax.core.errors.UserError as error:
        return str(error)

import prance_jax.core.errors
for name in ("hf-hub:owner/tiny", "hf-hub:owner/tiny@v2", "hf_hub:owner/tiny"):
    model, params = prance_jax.create_model(name)
    assert np.array_equal(params["head"]["kernel"], tensors["head.weight"].T)
assert model.spec.space.heads == 3 and model.pretrained_cfg.mean == (0.1, 0.2, 0.3)
assert "no such repository" in refused("hf-hub:owner/other"), refused("hf-hub:owner/other")
assert "no revision 'v9'" in refused("hf-hub:owner/tiny@v9"), refused("hf-hub:owner/tiny@v9")
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
server.shutdown()
count = len(requests)
model, params = prance_jax.create_model("hf-hub:owner/tiny", num_classes=2)
assert params["head"]["kernel"].shape == (12, 2) and len(requests) == count
message = refused("hf-hub:owner/other")
assert "the cache does not hold its files" in message, message
print("DONE")
"""


def run(script: str, **variables: str) -> subprocess.CompletedProcess:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **variables}
    command = [sys.executable, "-c", f"ROOT = {root!r}\n{script}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_client_loads_from_a_server_and_then_from_its_cache():
    pytest.importorskip("huggingface_hub")
    result = run(SCRIPT)
    assert result.stdout.endswith("DONE\n"), result.stderr[-2000:]


def test_without_the_client_the_error_tells_what_to_install(monkeypatch):
    from prance_jax.core.errors import UserError
    from prance_jax.zoo.hub import find_files

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"hf-hub:a/b needs the package huggingface_hub: pip install 'prance-jax\[hub\]'"
    ):
        find_files("hf-hub:a/b")
