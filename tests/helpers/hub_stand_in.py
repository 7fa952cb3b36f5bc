"""A local stand-in of the Hub: the part of its HTTP interface that `huggingface_hub` uses to make, fill and read repositories.

Files are kept in memory, by commit, as git does: a commit is a whole state of a repository under a name that is computed
from its content. Large files go the way of git LFS (xet must be switched off by `HF_HUB_DISABLE_XET=1`). What the real
Hub refuses is refused here: writing without the token, a broken card, a commit of a large file that was never uploaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER = "someone"
LARGE = (".safetensors", ".parquet")  # as `.gitattributes` of a new repository has it
REPO = r"(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
"""The name of a repository; that of a dataset begins with `datasets/`, as in its address."""
REPO_API = r"(?P<repo>(?:models|datasets)/[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"


@dataclass
class Repository:
    """States by commit, commits by branch, and what each commit said."""

    states: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Put a new state on a branch; its name."""
        digest = hashlib.sha1(f"{branch} {message} {len(self.states)}".encode())
        for path, content in sorted(files.items()):
            digest.update(f"{path} {len(content)} ".encode() + content)
        name = digest.hexdigest()
        self.states[name], self.messages[name] = files, message
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        """Return the commit of a branch or commit name."""
        return revision if revision in self.states else self.branches.get(revision)


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str, message: str, **body: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


class HubStandIn(ThreadingHTTPServer):
    """The server; `with HubStandIn() as hub:` serves in a thread of its own.

    Attributes:
        url: what `HF_ENDPOINT` must be.
        token: what writing needs, `HF_TOKEN`.
        repositories: full name, as in `someone/model`, to `Repository`.
        requests: (method, path) of all requests so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.token = "hf_stand_in"
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Path to content."""
        repository = self.repositories[repo]
        return repository.states[repository.branches[revision]]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def log_message(self, *arguments: Any) -> None:
        """Silent."""

    def answer(self) -> None:
        """Find the route, run it, send what it returns."""
        parts = urlsplit(self.path)
        path, self.query = parts.path, parse_qs(parts.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append((self.command, path))
            try:
                for method, pattern, route in ROUTES:
                    found = re.fullmatch(pattern, path)
                    if method == self.command and found:
                        arguments = {name: unquote(part).removeprefix("models/") for name, part in found.groupdict().items()}
                        status, headers, body = route(self, **arguments)
                        break
                else:
                    raise Refused(404, "NotFound", f"the stand-in knows no {self.command} {path}")
            except Refused as refused:
                status, body = refused.status, json.dumps(refused.body).encode()
                headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
                if "commit" in refused.body:
                    headers["X-Repo-Commit"] = refused.body["commit"]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ---- What routes need ----

    def json_body(self) -> Any:
        return json.loads(self.body)

    def check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            raise Refused(401, "Unauthorized", "Invalid username or password.")

    def repository(self, repo: str) -> Repository:
        if repo not in self.server.repositories:
            raise Refused(404, "RepoNotFound", "Repository not found")
        return self.server.repositories[repo]

    def commit_name(self, repo: str, revision: str) -> str:
        name = self.repository(repo).resolve(revision)
        if name is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return name

    # ---- Routes ----

    def create(self) -> Any:
        self.check_token()
        asked = self.json_body()
        repo = f"{'datasets/' if asked.get('type') == 'dataset' else ''}{asked.get('organization') or OWNER}/{asked['name']}"
        url = f"{self.server.url}/{repo}"
        if repo in self.server.repositories:
            raise Refused(409, "Conflict", "You already created this model repo", url=url)
        repository = self.server.repositories[repo] = Repository(private=asked.get("visibility") == "private")
        repository.commit(
            "main", {".gitattributes": b"".join(f"*{end} filter=lfs\n".encode() for end in LARGE)}, "initial commit"
        )
        return reply({"url": url, "name": repo})

    def validate_card(self) -> Any:
        content = self.json_body()["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(found[1]) if found else {}
        except yaml.YAMLError as error:
            raise Refused(400, "BadRequest", "invalid", errors=[{"message": str(error)}]) from error
        if not isinstance(metadata, dict):
            raise Refused(400, "BadRequest", "invalid", errors=[{"message": "metadata must be a mapping"}])
        return reply({"errors": [], "warnings": [] if metadata else [{"message": "empty or missing yaml metadata"}]})

    def create_branch(self, repo: str, revision: str) -> Any:
        self.check_token()
        repository = self.repository(repo)
        if revision in repository.branches:
            raise Refused(409, "Conflict", "Reference already exists")
        repository.branches[revision] = repository.branches[self.json_body().get("startingPoint", "main")]
        return reply({})

    def preupload(self, repo: str, revision: str) -> Any:
        self.check_token()
        present = self.repository(repo).states[self.commit_name(repo, revision)]
        files = []
        for file in self.json_body()["files"]:
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            old = present.get(file["path"])
            files.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": old and object_id(file["path"], old)}
            )
        return reply({"files": files})

    def large_file_batch(self, repo: str) -> Any:
        self.check_token()
        self.repository(repo)
        objects: list[dict[str, Any]] = []
        for asked in self.json_body()["objects"]:
            href = f"{self.server.url}/lfs/{asked['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            new = asked["oid"] not in self.server.large_files
            objects.append({**asked, **({"actions": actions} if new else {})})
        return reply({"transfer": "basic", "objects": objects})

    def upload_large_file(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "BadRequest", "content and sha256 differ")
        self.server.large_files[oid] = self.body
        return reply({})

    def verify_large_file(self, oid: str) -> Any:
        self.check_token()
        if len(self.server.large_files.get(oid, b"")) != self.json_body()["size"]:
            raise Refused(400, "BadRequest", "size differs")
        return reply({})

    def commit(self, repo: str, revision: str) -> Any:
        self.check_token()
        repository = self.repository(repo)
        files = dict(repository.states[self.commit_name(repo, revision)])
        message = ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file" and not value["path"].endswith(LARGE):
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile" and value["path"] in files:
                del files[value["path"]]
            elif entry["key"] == "lfsFile" and value["oid"] in self.server.large_files:
                files[value["path"]] = self.server.large_files[value["oid"]]
            else:
                raise Refused(400, "BadRequest", f"{entry['key']} {value.get('path')} cannot be committed")
        answer = {"success": True}
        if "create_pr" in self.query:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repository.branches)
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.server.url}/{repo}/discussions/{number}"
        name = repository.commit(revision, files, message)
        return reply({**answer, "commitUrl": f"{self.server.url}/{repo}/commit/{name}", "commitOid": name})

    def info(self, repo: str, revision: str = "main") -> Any:
        name = self.commit_name(repo, revision)
        siblings = [{"rfilename": path} for path in self.repository(repo).states[name]]
        private = self.repository(repo).private
        known_as = repo.removeprefix("datasets/")
        return reply({"id": known_as, "modelId": known_as, "sha": name, "private": private, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> Any:
        files = self.repository(repo).states[self.commit_name(repo, revision)]
        return reply(
            [{"type": "file", "path": path, "size": len(data), "oid": git_blob_id(data)} for path, data in files.items()]
        )

    def resolve(self, repo: str, revision: str, path: str) -> Any:
        name = self.commit_name(repo, revision)
        files = self.repository(repo).states[name]
        if path not in files:
            raise Refused(404, "EntryNotFound", f"{path} does not exist", commit=name)
        etag = f'"{object_id(path, files[path])}"'
        return 200, {"X-Repo-Commit": name, "ETag": etag, "Content-Type": "application/octet-stream"}, files[path]


def reply(body: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def object_id(path: str, content: bytes) -> str:
    """Return the hash that changes with the file: SHA-256 of a large file, git's blob hash of any other."""
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git_blob_id(content)


ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_card),
    ("POST", f"/api/{REPO_API}/branch/{REVISION}", Handler.create_branch),
    ("POST", f"/api/{REPO_API}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", Handler.large_file_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.upload_large_file),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", Handler.verify_large_file),
    ("POST", f"/api/{REPO_API}/commit/{REVISION}", Handler.commit),
    ("GET", f"/api/{REPO_API}", Handler.info),
    ("GET", f"/api/{REPO_API}/revision/{REVISION}", Handler.info),
    ("GET", f"/api/{REPO_API}/tree/{REVISION}", Handler.tree),
    ("HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
    ("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
)
