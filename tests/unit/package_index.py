"""A package index on loopback with small wheels, which can stall in the middle of a file."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from scheduler.cli.local_model.catalogue import ANY, Build, Wheel
from tests.patience import SOON_S


class PackageIndex:
    """Serves wheels by the simple API, and counts their downloads."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.downloads: list[str] = []
        self.half_sent = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.url = ""

    def add(self, package: str, contents: Mapping[str, str], *, licence: str = "MIT") -> Wheel:
        """Publish version 1.0 of a package with these files."""
        data = _wheel(package, contents)
        self.files[f"{package.replace('-', '_')}-1.0-py3-none-any.whl"] = data
        build = Build(hashlib.sha256(data).hexdigest(), len(data))
        return Wheel(package, "1.0", f"the {package}", licence, {ANY: build})

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """The type and the body for a path; None if there is nothing."""
        kind, _, name = path.strip("/").partition("/")
        if kind == "simple":
            names = [file for file in self.files if file.startswith(f"{name.replace('-', '_')}-")]
            links = "".join(f'<a href="/files/{file}">{file}</a><br>' for file in names)
            return ("text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode())
        return ("application/zip", self.files[name]) if name in self.files else None


@contextmanager
def package_index() -> Iterator[PackageIndex]:
    """An index that runs during the body."""
    index = PackageIndex()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = index.answer(self.path)
            if answer is None:
                self.send_error(404)
                return
            kind, body = answer
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not self.path.startswith("/files/"):
                self.wfile.write(body)
                return
            index.downloads.append(self.path.rpartition("/")[2])
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            index.half_sent.set()
            index.go_on.wait(SOON_S)
            self.wfile.write(body[len(body) // 2 :])

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the client was killed
                return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        index.url = f"http://127.0.0.1:{server.server_port}/simple"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield index
        finally:
            index.go_on.set()
            server.shutdown()
            thread.join()


def _wheel(package: str, contents: Mapping[str, str]) -> bytes:
    name = package.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    files = {
        **contents,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: nowhere\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return data.getvalue()
