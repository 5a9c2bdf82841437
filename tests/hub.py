"""A stand-in of the Hugging Face Hub on this machine: as much of its HTTP API as models need.

It keeps what is uploaded and gives it back, knows one token, and answers to what is not there with
the status and the X-Error-Code of the real one.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_token"  # no secret: of the stand-in alone


class Hub(ThreadingHTTPServer):
    """The models, by name, and large files by their SHA-256."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []  # 'GET /api/models/me/tiny'

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, name: str) -> str:
        """Of the newest commit."""
        return hashlib.sha1(repr(sorted(self.models[name].items())).encode()).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: Any = b"", status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def handle_one(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        writes = self.command in ("POST", "PUT") and not path.startswith("/lfs/")
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.command in ("POST", "PUT"):
            self.write(path, body)
        elif path.startswith("/api/models/"):
            self.tell(*re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path).groups())
        else:
            self.give(*re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path).groups())

    do_GET = do_HEAD = do_POST = do_PUT = handle_one  # noqa: N815

    def write(self, path: str, body: bytes) -> None:
        hub = self.server
        if path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}"
            hub.models.setdefault(name, {})
            self.answer({"url": f"{hub.endpoint}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith("safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif path.startswith("/lfs/"):
            hub.large[hashlib.sha256(body).hexdigest()] = body
            self.answer()
        else:
            name = re.fullmatch(r"/api/models/(.+)/commit/main", path)[1]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.models[name][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.models[name][value["path"]] = hub.large[value["oid"]]
            sha = hub.sha(name)
            self.answer({"commitUrl": f"{hub.endpoint}/{name}/commit/{sha}", "commitOid": sha})

    def tell(self, name: str, what: str | None, revision: str | None) -> None:
        hub = self.server
        if name not in hub.models:
            self.refuse(401, "RepoNotFound")  # what the real one says to those without a token
        elif revision not in (None, "main", hub.sha(name)):
            self.refuse(404, "RevisionNotFound")
        elif what == "tree":
            files = hub.models[name].items()
            self.answer(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": etag(data)}
                    for path, data in files
                ]
            )
        else:
            siblings = [{"rfilename": path} for path in hub.models[name]]
            self.answer({"id": name, "sha": hub.sha(name), "siblings": siblings})

    def give(self, name: str, revision: str, path: str) -> None:
        data = self.server.models[name][path]
        about = {"ETag": f'"{etag(data)}"', "X_Repo_Commit": revision}
        self.answer(data, **about)


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
