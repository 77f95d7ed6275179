"""A stand-in for the Hugging Face Hub: what a push calls, on this machine, with its files kept."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """Repositories by name: whether they are private, and the files of each commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {}
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}

    def write(self, name: str, folder: Path) -> Path:
        """Write the files of a repository's newest commit."""
        for path, data in self.commits[name][-1].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        return folder


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            header = json.loads(body)["content"].split("---\n")[1]
            lacking = [] if "pipeline_tag" in header else [{"message": "no pipeline_tag"}]
            self.answer(400 if lacking else 200, {"errors": lacking, "warnings": []})
        elif self.path.endswith("/preupload/main"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **each,
                    "actions": {"upload": {"href": f"{self.server.address}/lfs/{each['oid']}"}},
                }
                for each in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif self.path.endswith("/commit/main"):
            self.commit(self.path.split("/models/")[1].removesuffix("/commit/main"), body)
        else:
            self.answer(404, {"error": f"nothing at {self.path}"})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[self.path.removeprefix("/lfs/")] = data
        self.answer(200, {})

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "alice":
            self.answer(403, {"error": f"You don't have the rights under {name}"})
            return
        known = name in self.server.private
        # older clients say "private", newer ones "visibility"
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.server.private.setdefault(name, private)
        self.server.commits.setdefault(name, [])
        self.answer(409 if known else 200, {"url": f"{self.server.address}/{name}"})

    def commit(self, name: str, body: bytes) -> None:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        self.server.commits[name].append(files)
        where = f"{self.server.address}/{name}/commit/{'0' * 40}"
        self.answer(200, {"commitUrl": where, "commitOid": "0" * 40})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def running_hub(patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub and turn this process's huggingface_hub to it, with a token."""
    hub = Hub()
    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files go by LFS
    patch.setenv("HF_TOKEN", TOKEN)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
