"""Stands between a client and a server on loopback, and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Proxy:
    """Forwards HTTP requests.

    Attributes:
        mode: ``pass``, ``hang``, or a status to answer with.
        lose: The answers to calls with this in their path are lost, after the server did its work; empty for none.
        poison: A batch with this in it is answered as MLflow answers bad content; empty for none.
        calls: Path of every request.
    """

    def __init__(self, port: int):
        self.mode: str | int = "pass"
        self.poison = b""
        self.lose = ""
        self.calls: list[str] = []
        self._target = port
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.calls.append(self.path.partition("?")[0])
                if outer.mode == "hang":
                    time.sleep(60)
                    return
                if isinstance(outer.mode, int):
                    self._answer(outer.mode, b"<html>no</html>", "text/html")
                    return
                if outer.poison and outer.poison in body and "log-batch" in self.path:
                    self._answer(400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid value"}')
                    return
                connection = http.client.HTTPConnection("127.0.0.1", outer._target, timeout=30)
                headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                with contextlib.closing(connection):
                    connection.request(self.command, self.path, body, headers)
                    answer = connection.getresponse()
                    content = answer.read()
                if outer.lose and outer.lose in self.path:
                    self.close_connection = True
                    self.connection.close()
                    return
                self._answer(answer.status, content, answer.getheader("Content-Type") or "application/json")

            def _answer(self, status: int, content: bytes, kind: str = "application/json"):
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
