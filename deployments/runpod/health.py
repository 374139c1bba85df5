"""`GET /ping` on RunPod's health port: 204 while the worker starts, 200 when it is ready."""

import http.server
import threading

from deployments.runpod.ports import address_family, all_interfaces


class _Server(http.server.ThreadingHTTPServer):
    address_family = address_family()


class HealthPort:
    """Raises OSError if the port cannot be opened."""

    def __init__(self, port: int) -> None:
        self.ready = False
        health = self

        class Ping(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path.partition("?")[0] == "/ping"
                self.send_response((200 if health.ready else 204) if found else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = _Server((all_interfaces(), port), Ping)
        threading.Thread(target=server.serve_forever, daemon=True).start()
