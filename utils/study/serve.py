"""`main.py --serve FOLDER`: a page over all runs below a folder.

Only reads, only answers GET, only what lies in the folder, and fetches nothing from elsewhere.
"""

import errno
import ipaddress
import json
import secrets
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from palimpsest.utils.args import ArgumentParser
from palimpsest.utils.errors import UserError
from palimpsest.utils.option_types import number
from palimpsest.utils.study.catalogue import Catalogue

STATIC = Path(__file__).parent / "static"
PAGE = "index.html"
SHOWN = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SHOWN |= {".LICENSE": "text/plain"}
# A report has its style and its pictures in it, and no scripts; the page has all in files of its own.
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_POLICY = f"{NOTHING}; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
REPORT_POLICY = f"{NOTHING}; style-src 'unsafe-inline'; img-src data:"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
SECONDS = 30  # a browser may say nothing before its connection is closed


def command(argv: list[str]) -> int:
    """Serve until Ctrl-C; returns the exit status 0.

    Raises:
        UserError: no such folder, or an address that cannot be had.
    """
    parser = ArgumentParser(prog="main.py", description="A page over all runs below a folder, in a browser.")
    parser.add_argument("--serve", nargs="?", const="./results", metavar="FOLDER", help="default: ./results")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines read")
    parser.add_argument("--port", type=number(int, 0, 65535), default=8642, help="0 takes a free one")
    args = parser.parse_args(argv)
    catalogue = Catalogue(Path(args.serve))
    catalogue.refresh()
    with make_page_server(catalogue, args.host, args.port) as server:
        print(f"{len(catalogue.names())} runs of {args.serve}: {address(args.host, server.server_port)}", flush=True)
        if not _is_loopback(args.host):
            print("everybody who reaches this address can read them", flush=True)
        print("Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def address(host: str, port: int) -> str:
    """What to open in a browser."""
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def make_page_server(catalogue: Catalogue, host: str, port: int) -> WSGIServer:
    """A server that listens already and answers once it is run.

    Raises:
        UserError: the address is taken, or none of this machine's.
    """
    names = {"localhost", host.lower()}
    if not _is_loopback(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    kind = type("Server", (_Server,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    try:
        return make_server(host, port, guarded(application(catalogue), names), kind, _Handler)
    except OSError as e:
        advice = "give another --port" if e.errno in (errno.EADDRINUSE, errno.EACCES) else "give another --host"
        raise UserError(f"cannot listen at {host}, port {port}: {e.strerror or e}; {advice}") from None


def application(catalogue: Catalogue) -> Callable:
    """The page, its files, the runs as JSON and their reports, as a WSGI application."""
    from bottle import Bottle, HTTPError, HTTPResponse, request, static_file

    app = Bottle()
    app.default_error_handler = lambda error: f"{error.status}\n"
    files, start = static_files(), secrets.token_hex(4)  # a tag of a former server is no tag of this one

    def as_json(text: str, tag: str = "") -> Any:
        headers = {"Content-Type": "application/json"} | ({"ETag": tag} if tag else {})
        if tag and request.get_header("If-None-Match") == tag:
            return HTTPResponse(status=304, headers=headers)
        return HTTPResponse(text, headers=headers)

    def send(path: Path, kind: str) -> Any:
        return static_file(path.name, root=str(path.parent), mimetype=f"{kind}; charset=utf-8")

    @app.get("/")
    def page():
        return send(STATIC / PAGE, SHOWN[".html"])

    @app.get("/static/<name>")
    def static(name: str):
        return send(files[name], SHOWN[files[name].suffix]) if name in files else HTTPError(404)

    @app.get("/data/runs.json")
    def runs():
        catalogue.refresh()
        text, version = catalogue.listing()
        return as_json(text, f'"{start}-{version}"')

    @app.get("/data/run/<name:path>.json")
    def run(name: str):
        found = catalogue.detail(name)
        return HTTPError(404) if found is None else as_json(json.dumps(found))

    @app.get("/runs/<name:path>/report.html")
    def report(name: str):
        path = catalogue.report(name)
        return HTTPError(404) if path is None else send(path, SHOWN[".html"])

    return app


def static_files() -> dict[str, Path]:
    """The page's own files by name."""
    return {path.name: path for path in sorted(STATIC.iterdir()) if path.suffix in SHOWN and path.name != PAGE}


def guarded(app: Callable, names: set[str]) -> Callable:
    """An application that answers to these names and to plain addresses only, with headers that keep others out.

    A page of a stranger may have its own name lead to 127.0.0.1 (DNS rebinding): its requests carry that name.
    """

    def answer(environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        if not is_known(environ.get("HTTP_HOST", ""), names):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"403 Forbidden: this server has another name\n"]

        def start(status: str, headers: list, *more) -> Any:
            policy = REPORT_POLICY if environ.get("PATH_INFO", "").startswith("/runs/") else PAGE_POLICY
            mine = HEADERS | {"Content-Security-Policy": policy}
            return start_response(status, [h for h in headers if h[0] not in mine] + list(mine.items()), *more)

        return app(environ, start)

    return answer


def is_known(host: str, names: set[str]) -> bool:
    """Whether a Host header names this server."""
    name = host.rpartition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return name.lower().rstrip(".") in names


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a browser that keeps a connection open holds nobody up, not even the end

    def server_bind(self) -> None:
        """As WSGIServer does, but without asking a name server who this machine is."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = SECONDS

    def log_message(self, *args) -> None:
        """A request is no news."""
