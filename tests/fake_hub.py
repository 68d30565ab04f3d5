# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Hub's HTTP API, of the part that pushing and loading a model needs.

Clients read `HF_ENDPOINT` when `huggingface_hub` is imported, so they must be processes of their own, with the
environment of `FakeHub.environment`.
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


class FakeHub:
    """A server on a free port of this machine, to be used in a `with` statement.

    Attributes:
        repositories (`dict[str, dict[str, bytes]]`): The files of each repository by their path.
        requests (`list[str]`): Method and path of every request.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.num_commits = 0
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def commit(self) -> str:
        """A new one after every push: clients look for a file of a known commit in their cache only."""
        return f"{self.num_commits:040x}"

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a client whose cache is `home`."""
        inherited = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
        return {
            **inherited,
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_stand_in",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }

    def metadata(self, repository: str) -> dict[str, Any]:
        """The YAML at the top of a repository's README."""
        readme = self.repositories[repository].get("README.md", b"").decode()
        return yaml.safe_load(readme.split("---")[1]) if readme.startswith("---") else {}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"POST {self.path}")
        if self.path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'somebody'}/{request['name']}"
            self.hub.repositories.setdefault(name, {})
            self._send_json({"url": f"http://{self.headers['Host']}/{name}", "id": name, "name": name})
        elif self.path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._send_json({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(match[1], body)
        else:
            self._send_error("RepoNotFound")

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            self._send_json({"name": "somebody", "type": "user", "orgs": []})
        elif (match := re.fullmatch(r"/api/models/(.+?)(/revision/main)?", path)) and match[
            1
        ] in self.hub.repositories:
            self._send_json(self._model_info(match[1]))
        elif match := re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", path):
            self._send_file(self.hub.repositories.get(match[1], {}).get(match[2]))
        else:
            self._send_error("RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _commit(self, name: str, body: bytes) -> None:
        files = self.hub.repositories[name]
        for line in body.decode().splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
        self.hub.num_commits += 1
        url = f"http://{self.headers['Host']}/{name}/commit/{self.hub.commit}"
        self._send_json({"success": True, "commitUrl": url, "commitOid": self.hub.commit, "hookOutput": ""})

    def _model_info(self, name: str) -> dict[str, Any]:
        metadata = self.hub.metadata(name)
        return {
            "id": name,
            "modelId": name,
            "sha": self.hub.commit,
            "private": False,
            "tags": metadata.get("tags", []),
            "pipeline_tag": metadata.get("pipeline_tag"),
            "library_name": metadata.get("library_name"),
            "siblings": [{"rfilename": path} for path in self.hub.repositories[name]],
        }

    def _send_file(self, content: bytes | None) -> None:
        if content is None:
            self._send_error("EntryNotFound")
            return
        etag = hashlib.sha1(content).hexdigest()
        self._send(200, content, {"X-Repo-Commit": self.hub.commit, "ETag": f'"{etag}"'})

    def _send_error(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Repo-Commit": self.hub.commit})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
