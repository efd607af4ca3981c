"""A hub on loopback: repositories in memory, with what huggingface_hub asks of a server to upload and download."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub:
    """Files by repository and path."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}


@contextlib.contextmanager
def hub_server(monkeypatch):
    """Serve a hub, and let rltrack use it."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            path = urlsplit(self.path).path
            repository = "/".join(path.split("/")[3:5])
            if path == "/api/repos/create":
                asked = json.loads(body)
                repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
                hub.files.setdefault(repository, {})
                self._json({"url": f"{self._base()}/{repository}", "name": repository})
            elif "/preupload/" in path:
                files = json.loads(body)["files"]
                self._json(
                    {
                        "files": [
                            {"path": item["path"], "uploadMode": "regular", "shouldIgnore": False} for item in files
                        ]
                    }
                )
            elif "/commit/" in path:
                for line in body.splitlines():
                    item = json.loads(line)
                    if item["key"] == "file":
                        hub.files[repository][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                self._json({"commitUrl": f"{self._base()}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})
            else:  # the check of a card's metadata
                self._json({"errors": [], "warnings": []})

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in hub.files:
                repository = "/".join(parts[2:4])
                names = hub.files[repository]
                if "tree" in parts:
                    self._json(
                        [
                            {"type": "file", "path": name, "size": len(data), "oid": COMMIT}
                            for name, data in names.items()
                        ]
                    )
                else:
                    siblings = [{"rfilename": name} for name in names]
                    self._json({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings,
                                "private": False, "tags": [], "downloads": 0})  # fmt: skip
            elif (
                len(parts) > 4
                and parts[2] == "resolve"
                and "/".join(parts[4:]) in hub.files.get("/".join(parts[:2]), {})
            ):
                data = hub.files["/".join(parts[:2])]["/".join(parts[4:])]
                self._answer(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
            else:
                self._answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _base(self):
            return f"http://{self.headers['host']}"

        def _json(self, data):
            self._answer(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

        def _answer(self, status, data, headers):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
