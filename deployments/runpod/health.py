"""`GET /ping` on RunPod's health port: 204 while the worker starts, 200 when it is ready."""

import http.server
import socket
import threading


def all_interfaces() -> str:
    """The address to listen on for callers by IPv6 and by IPv4; the latter's alone without IPv6."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def check_port(port: int) -> None:
    """Raises OSError if `all_interfaces` cannot be listened on at this port."""
    server = socket.create_server(
        (all_interfaces(), port),
        family=_Server.address_family,
        dualstack_ipv6=socket.has_dualstack_ipv6(),
    )
    server.close()


class _Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET


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
