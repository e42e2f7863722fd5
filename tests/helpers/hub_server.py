"""A small Hub on this machine: an HTTP server that stores repositories and speaks the endpoints that the Hub's own
client uses to create, upload, list and download. Files really are transferred, large ones by Git LFS.

The rules of names, tokens, licences and cards follow the Hub's documentation. It is for tests: the real Hub does more.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

WRITE, READ = "hf_writewritewritewrite", "hf_readreadreadreadread"
OWNER = "me"
LFS_FROM = 4096  # bytes; the Hub itself decides by .gitattributes and by 10 MB
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0", "openrail", "other", "unknown")
TASKS = ("video-classification", "image-classification", "zero-shot-image-classification", "image-feature-extraction")
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SDKS = ("gradio", "docker", "static", "streamlit")
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass
class Repository:
    """Commits of a repository, the newest last: its id and path -> content."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str = "", deleted: Collection[str] = ()) -> str:
        """Add files to the newest commit, and delete some; returns the id of the new one."""
        merged = {path: data for path, data in {**self.files(), **files}.items() if path not in deleted}
        text = f"{len(self.commits)} {message} {sorted(merged)}".encode() + b"".join(merged.values())
        self.commits.append((hashlib.sha1(text).hexdigest(), merged))
        return self.commits[-1][0]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch, tag or commit."""
        return dict(self.commits)[self.resolve(revision)] if self.commits else {}

    def resolve(self, revision: str) -> str:
        """The commit of a revision. Raises KeyError."""
        if revision == "main" and self.commits:
            return self.commits[-1][0]
        revision = self.tags.get(revision, revision)
        if revision not in dict(self.commits):
            raise KeyError(revision)
        return revision


class Problem(Exception):
    def __init__(self, status: int, message: str, code: str = "", body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, body


class Hub:
    """The state of the server. `cut`: bytes after which the next download is cut off, once for each entry.

    `requests`: method, path and status of each request.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.cut: list[int] = []
        self.url = ""

    def create(self, kind: str, name: str, **settings: Any) -> Repository:
        repository = Repository(kind, name, **settings)
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.repositories[kind, name] = repository
        return repository

    def downloaded(self) -> list[str]:
        """The paths of files that were downloaded, in order."""
        found = (re.search(r"/resolve/[^/]+/(.*)$", path) for method, path, _ in self.requests if method == "GET")
        return [match[1] for match in found if match]


def use_hub(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Hub's client of this process go to `hub`, with a cache below `folder` and a token that may write."""
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(folder / "no token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", WRITE)


@contextmanager
def served_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.body = self.rfile.read(length) if length else self._chunks()
        path = unquote(urlsplit(self.path).path)
        try:
            self._route(path)
        except Problem as problem:
            body = problem.body or {"error": str(problem)}
            headers = {"X-Error-Message": str(problem), **({"X-Error-Code": problem.code} if problem.code else {})}
            self._json(body, problem.status, headers)

    def _chunks(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # --- routes ---

    def _route(self, path: str) -> None:
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(self.body))
        if path == "/api/whoami-v2":
            return self._json({"name": self._user(), "type": "user", "orgs": [], "auth": {}})
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            return self._put_object(match[1])
        if path == "/lfs/verify":
            return self._verify(json.loads(self.body))
        if match := re.fullmatch(r"/(datasets/|spaces/|)([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._writable(self._repository(_kind(match[1]), match[2]))
            return self._batch(json.loads(self.body))
        if match := re.fullmatch(r"/(datasets/|spaces/|)([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(self._repository(_kind(match[1]), match[2]), match[3], match[4])
        if match := re.fullmatch(
            r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([\w-]+)(?:/([^/]+)(?:/(.*))?)?)?", path
        ):
            return self._of_repository(self._repository(match[1], match[2]), match[3] or "", match[4], match[5] or "")
        raise Problem(404, f"no such route: {path}")

    def _of_repository(self, repository: Repository, what: str, revision: str | None, below: str) -> None:
        if what in ("", "revision"):
            return self._info(repository, revision or "main")
        if what == "tree":
            return self._json(
                [
                    _listed(path, data)
                    for path, data in self._files(repository, revision).items()
                    if path.startswith(below)
                ]
            )
        if what == "paths-info":
            query = parse_qs(self.body.decode())
            wanted = query.get("paths") or json.loads(self.body)["paths"]
            files = self._files(repository, revision)
            return self._json([_listed(path, files[path]) for path in wanted if path in files])
        self._writable(repository)
        if what == "preupload":
            return self._preupload(repository, json.loads(self.body))
        if what == "commit":
            return self._commit(repository, [json.loads(line) for line in self.body.splitlines() if line.strip()])
        raise Problem(404, f"no such route: {what}")

    # --- who may do what ---

    def _user(self) -> str:
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in (WRITE, READ):
            raise Problem(401, "Invalid credentials in Authorization header")
        return OWNER

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        if "authorization" in self.headers:
            self._user()
        elif repository is None or repository.private:  # the Hub does not say which of the two it is
            raise Problem(401, "Invalid username or password.", "RepoNotFound")
        if repository is None:
            raise Problem(404, "Repository not found", "RepoNotFound")
        if repository.gated and "authorization" not in self.headers:
            raise Problem(401, "Access to this model is restricted", "GatedRepo")
        return repository

    def _writable(self, repository: Repository) -> None:
        self._user()
        if self.headers["authorization"] != f"Bearer {WRITE}" or not repository.name.startswith(f"{OWNER}/"):
            raise Problem(403, "you must use a write token to upload to a repository")

    # --- writing ---

    def _create(self, wanted: dict[str, Any]) -> None:
        self._user()
        kind, owner = wanted.get("type") or "model", wanted.get("organization") or OWNER
        name = f"{owner}/{wanted['name']}"
        if self.headers["authorization"] != f"Bearer {WRITE}" or owner != OWNER:
            raise Problem(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
        if not re.fullmatch(r"[\w-][\w.-]{0,95}", wanted["name"], re.ASCII) or re.search(
            r"--|\.\.|[.-]$", wanted["name"]
        ):
            raise Problem(400, "Invalid repo name")
        url = f"{self.hub.url}/{PREFIXES[kind]}{name}"
        if (kind, name) in self.hub.repositories:
            raise Problem(
                409, "You already created this repo", body={"error": "You already created this repo", "url": url}
            )
        if kind == "space" and wanted.get("sdk") not in SDKS:
            raise Problem(400, "a space needs an sdk")
        self.hub.create(kind, name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self._json({"url": url, "name": name, "id": name})

    def _validate(self, wanted: dict[str, Any]) -> None:
        errors = card_problems(wanted["content"], wanted["repoType"])
        self._json({"errors": [{"message": each} for each in errors], "warnings": []}, 400 if errors else 200)

    def _preupload(self, repository: Repository, wanted: dict[str, Any]) -> None:
        files = repository.files()
        self._json(
            {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["size"] >= LFS_FROM else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(files[each["path"]]) if each["path"] in files else None,
                    }
                    for each in wanted["files"]
                ]
            }
        )

    def _batch(self, wanted: dict[str, Any]) -> None:
        actions = {"upload": {"href": "{url}/lfs/{oid}"}, "verify": {"href": "{url}/lfs/verify"}}
        objects = []
        for each in wanted["objects"]:
            entry = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.objects:
                links = {
                    name: {"href": one["href"].format(url=self.hub.url, oid=each["oid"])}
                    for name, one in actions.items()
                }
                entry["actions"] = links
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _put_object(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Problem(400, "the content has another digest")
        self.hub.objects[oid] = self.body
        self._json({})

    def _verify(self, wanted: dict[str, Any]) -> None:
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Problem(404, "no such object")
        self._json({})

    def _commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        files, deleted, message = dict[str, bytes](), set[str](), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Problem(400, f"{value['path']}: its content was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                deleted.add(value["path"])
            else:
                raise Problem(400, f"unknown operation {line['key']}")
        oid = repository.commit(files, message, deleted)
        self._json({"commitUrl": f"{self.hub.url}/{repository.name}/commit/{oid}", "commitOid": oid, "success": True})

    # --- reading ---

    def _files(self, repository: Repository, revision: str | None) -> dict[str, bytes]:
        try:
            return repository.files(revision or "main")
        except KeyError:
            raise Problem(404, f"Invalid rev id: {revision}", "RevisionNotFound") from None

    def _info(self, repository: Repository, revision: str) -> None:
        files = self._files(repository, revision)
        siblings = [{"rfilename": path} for path in files]
        facts = {"id": repository.name, "sha": repository.resolve(revision), "private": repository.private}
        self._json({**facts, "tags": [], "siblings": siblings, "downloads": 0, "likes": 0})

    def _file(self, repository: Repository, revision: str, path: str) -> None:
        files = self._files(repository, revision)
        commit = {"X-Repo-Commit": repository.resolve(revision)}
        if path not in files:
            self._record(404)
            self.send_response(404)
            for name, value in {**commit, "X-Error-Code": "EntryNotFound", "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        data, start = files[path], 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")):
            start = int(wanted[1])
        part = data[start : int(wanted[2]) + 1 if wanted and wanted[2] else None]
        headers = {
            **commit,
            "ETag": f'"{_oid(data)}"',
            "Accept-Ranges": "bytes",
            "Content-Length": str(len(part)),
            "Content-Type": "application/octet-stream",
            **({"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"} if wanted else {}),
        }
        self._record(206 if wanted else 200)
        self.send_response(206 if wanted else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut and len(part) > self.hub.cut[0]:
            self.wfile.write(part[: self.hub.cut.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(part)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self._record(status)
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _record(self, status: int) -> None:
        self.hub.requests.append((self.command, self.path, status))


def _kind(prefix: str) -> str:
    return next(kind for kind, each in PREFIXES.items() if each == prefix)


def _oid(data: bytes) -> str:
    """The id of a file: of a large one its SHA-256, of a small one that of its blob in git."""
    if len(data) >= LFS_FROM:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _listed(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
    if len(data) >= LFS_FROM:
        entry["lfs"] = {"oid": _oid(data), "size": len(data), "pointerSize": 130}
    return entry


# --- the validator of cards -------------------------------------------------------------------------------------------


def card_problems(content: str, kind: str) -> list[str]:
    """What is wrong with the front matter of a README.md, by the Hub's documentation of cards and Spaces."""
    match = re.match(r"---\n(.*?)\n?---\n", content, re.DOTALL)
    if not match:
        return ["no metadata"] if kind == "space" else []
    try:
        values = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    return _space_problems(values) if kind == "space" else _model_problems(values)


def _space_problems(values: dict[str, Any]) -> list[str]:
    rules = {
        '"title" must be a text': isinstance(values.get("title"), str),
        '"sdk" must be one of the known': values.get("sdk") in SDKS,
        '"colorFrom" must be a colour': values.get("colorFrom", "red") in COLOURS,
        '"colorTo" must be a colour': values.get("colorTo", "red") in COLOURS,
        '"emoji" must be one': 1 <= len(values.get("emoji", "x")) <= 2,
        '"short_description" is too long': len(values.get("short_description", "")) <= 60,
        '"app_port" must be a port': isinstance(values.get("app_port", 1), int),
    }
    return [rule for rule, holds in rules.items() if not holds]


def _model_problems(values: dict[str, Any]) -> list[str]:
    problems = []
    if "license" in values and values["license"] not in LICENCES:
        problems.append('"license" must be one of the known')
    if "pipeline_tag" in values and values["pipeline_tag"] not in TASKS:
        problems.append('"pipeline_tag" must be one of the known')
    if not all(isinstance(tag, str) for tag in values.get("tags", [])):
        problems.append('"tags" must be texts')
    if "base_model" in values and not re.fullmatch(r"[\w.-]+/[\w.-]+", values["base_model"]):
        problems.append('"base_model" must be the id of a model')
    for number, model in enumerate(values.get("model-index", [])):
        where = f'"model-index[{number}]'
        if not isinstance(model.get("name"), str):
            problems.append(f'{where}.name" is required')
        for result in model.get("results", []):
            if not isinstance(result.get("task", {}).get("type"), str):
                problems.append(f'{where}.results.task.type" is required')
            if not {"name", "type"} <= result.get("dataset", {}).keys():
                problems.append(f'{where}.results.dataset" needs name and type')
            for metric in result.get("metrics", []):
                if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float | str):
                    problems.append(f'{where}.results.metrics" need type and value')
    return problems
