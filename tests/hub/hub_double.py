"""A small double of the Hugging Face Hub on loopback: what `huggingface_hub` calls to create, upload, list and download models.

Repositories are in memory, with commits, branches and tags. Files above a few kilobytes, and weights of any size, go through git LFS
(basic transfer) and are downloaded through a redirect, as from the real Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub import ModelCard


TOKEN, OTHER_TOKEN = "hf_ownerOWNERownerOWNER0123456789", "hf_otherOTHERotherOTHER0123456789"

_LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".png")
_LFS_SIZE = 10_000


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """As git names it: of an LFS file its pointer's."""
        blob = self.content
        if self.lfs:
            blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(blob)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A commit, and all files of the repository after it."""

    oid: str
    parent: str | None
    message: str
    files: dict[str, File]


@dataclass
class Repository:
    """A model repository.

    Attributes:
        private: only its owner sees it.
        gated: only its owner and `readers` may download from it.
        branches, tags: name -> commit.
    """

    owner: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, [])

    def find(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def commit(self, branch: str, message: str, added: dict[str, File], deleted: list[str]) -> Commit:
        parent = self.branches.get(branch)
        files = dict(self.commits[parent].files) if parent else {}
        for path in deleted:
            del files[path]
        files.update(added)
        digest = hashlib.sha1(f"{parent} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits[digest] = Commit(digest, parent, message, files)
        self.branches[branch] = digest
        return self.commits[digest]


@dataclass
class Fault:
    """What goes wrong with some requests.

    Attributes:
        method, path: regular expressions of the requests.
        status: the answer's; `None`: the connection is cut.
        after: bytes of the answer's body that are sent before the connection is cut.
        skip: so many such requests succeed before.
        times: so many fail.
        done: the request is carried out, and only its answer is lost.
    """

    method: str
    path: str
    status: int | None = 500
    after: int | None = None
    skip: int = 0
    times: int = 1
    done: bool = False

    def strikes(self, method: str, path: str) -> bool:
        if not re.fullmatch(self.method, method) or not re.search(self.path, path) or not self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Answer(Exception):
    """An answer that is no success, with the headers by which the client tells its kind."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class Hub:
    """The server, in a thread of its own as long as the `with` lasts.

    Attributes:
        url: to be the client's endpoint.
        users: token -> name.
        repositories: id -> [`Repository`].
        requests: method and path (with its query) of each request so far.
        faults: what is to go wrong.
        before_commit: called, if set, between the arrival of a commit and the look at its parent.
    """

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.before_commit = None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn_url = f"http://localhost:{self._server.server_port}/cdn"  # another host to the client

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # ---- For tests ----

    def add_user(self, name: str, token: str) -> str:
        self.users[token] = name
        return token

    def create(self, repo_id: str, **options) -> Repository:
        self.repositories[repo_id] = Repository(repo_id.split("/")[0], **options)
        return self.repositories[repo_id]

    def put(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files; returns the commit."""
        added = {path: File(content, _is_lfs(path, len(content))) for path, content in files.items()}
        return self.repositories[repo_id].commit(branch, "put", added, []).oid

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds."""
        files = self.repositories[repo_id].find(revision).files
        return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def history(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The commits of a revision, newest first."""
        repository, found = self.repositories[repo_id], []
        commit = repository.find(revision)
        while commit is not None:
            found.append(commit)
            commit = repository.commits.get(commit.parent) if commit.parent else None
        return found

    def everything(self) -> bytes:
        """All that was ever uploaded, names and messages too."""
        commits = [commit for repository in self.repositories.values() for commit in repository.commits.values()]
        texts = [commit.message.encode() for commit in commits]
        files = [
            part for commit in commits for path, file in commit.files.items() for part in (path.encode(), file.content)
        ]
        return b"\n".join([*texts, *files, *self.objects.values()])


def _is_lfs(path: str, size: int) -> bool:
    return path.endswith(_LFS_ENDINGS) or size > _LFS_SIZE


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    # Head and body of an answer are two packets: without this the second waits 40 ms until the client says that it has the first.
    disable_nagle_algorithm = True
    _cut_after: int | None = None

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        self.hub.requests.append((self.command, self.path))
        with self.hub.lock:
            fault = next((each for each in self.hub.faults if each.strikes(self.command, self.path)), None)
        self._cut_after = fault.after if fault is not None and fault.status is None else None
        try:
            if fault is not None and not fault.done and self._cut_after is None:
                if fault.status is None:
                    self._hang_up()
                    return
                raise Answer(fault.status, "injected fault")
            status, content, headers = self._answer(urlsplit(self.path), body)
            if fault is not None and fault.done:
                raise Answer(fault.status or 500, "injected fault")
        except Answer as answer:
            status, content, headers = answer.status, answer.body, answer.headers
        self._send(status, content, headers)

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        content = self.rfile.read(size)
        self.rfile.readline()
        return content

    def _send(self, status: int, content: object, headers: dict[str, str]) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if self._cut_after is None else data[: self._cut_after])
            if self._cut_after is not None:
                self._hang_up()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    # ---- Who asks, and for what ----

    def _user(self) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        name = self.hub.users.get(header.removeprefix("Bearer "))
        if name is None:
            raise Answer(401, "Invalid credentials in Authorization header")
        return name

    def _repository(self, repo_id: str, write: bool = False, query: dict[str, list[str]] | None = None) -> Repository:
        user, repository = self._user(), self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and user != repository.owner):
            # The Hub does not tell one from the other, and tells an anonymous caller to log in.
            raise Answer(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != repository.owner and not (user and "create_pr" in (query or {})):
            raise Answer(403 if user else 401, "You don't have the required permissions to write to this repository")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- Endpoints ----

    def _answer(self, url, body: bytes) -> tuple[int, object, dict[str, str]]:
        path = url.path
        for method, pattern, endpoint in _ENDPOINTS:
            match = re.fullmatch(pattern, path)
            if match and re.fullmatch(method, self.command):
                groups = {name: unquote(value) if value else value for name, value in match.groupdict().items()}
                result = endpoint(self, **groups, query=parse_qs(url.query), body=body)
                return result if isinstance(result, tuple) else (200, result, {})
        raise Answer(404, f"the double knows no {self.command} {path}")

    def whoami(self, query, body):
        user = self._user()
        if user is None:
            raise Answer(401, "Invalid username or password.")
        return {
            "type": "user",
            "name": user,
            "auth": {"accessToken": {"role": "write", "displayName": "test"}},
            "orgs": [],
        }

    def create(self, query, body):
        user, options = self._user(), json.loads(body)
        if user is None:
            raise Answer(401, "Invalid username or password.")
        owner = options.get("organization") or user
        repo_id = f"{owner}/{options['name']}"
        with self.hub.lock:
            if repo_id in self.hub.repositories:
                raise Answer(409, "You already created this model repo", url=f"{self.hub.url}/{repo_id}")
            if owner != user:
                raise Answer(403, f"You don't have the rights to create a model under the namespace {owner!r}")
            self.hub.create(repo_id, private=options.get("visibility") == "private" or bool(options.get("private")))
        return {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}

    def validate_yaml(self, query, body):
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            return {"warnings": [{"message": "empty or missing yaml metadata in repo card"}], "errors": []}
        try:
            # (Of what the real one looks at, what the client knows too.)
            ModelCard(content, ignore_metadata_errors=False)
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise Answer(400, "Invalid metadata", warnings=[], errors=[{"message": str(error)}]) from None
        return {"warnings": [], "errors": []}

    def info(self, repo, query, body, revision="main"):
        repository = self._repository(repo)
        commit = self._commit_of(repository, revision or "main")
        return {
            "_id": "0", "id": repo, "modelId": repo, "author": repository.owner, "sha": commit.oid, "private": repository.private,
            "gated": "manual" if repository.gated else False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }  # fmt: skip

    def tree(self, repo, revision, folder, query, body):
        files = self._commit_of(self._repository(repo), revision).files
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise Answer(404, f"{folder} does not exist", "EntryNotFound")
        entries = []
        for path in sorted(inside):
            rest = path[len(prefix) :]
            if "/" not in rest or query.get("recursive", ["false"])[0].lower() == "true":
                entries.append(_entry(path, inside[path]))
        folders = sorted({prefix + path[len(prefix) :].split("/")[0] for path in inside if "/" in path[len(prefix) :]})
        return entries + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": each} for each in folders]

    def paths_info(self, repo, revision, query, body):
        files = self._commit_of(self._repository(repo), revision).files
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = parse_qs(body.decode())["paths"]
        return [_entry(path, files[path]) for path in paths if path in files]

    def refs(self, repo, query, body):
        repository = self._repository(repo)
        return {
            "branches": [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                for name, oid in repository.branches.items()
            ],
            "tags": [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
                for name, oid in repository.tags.items()
            ],
            "converts": [],
        }

    def branch(self, repo, name, query, body):
        repository = self._repository(repo, write=True)
        if name in repository.branches:
            raise Answer(409, "Reference already exists")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repository.branches[name] = self._commit_of(repository, start).oid
        return {}

    def tag(self, repo, revision, query, body):
        repository = self._repository(repo, write=True)
        repository.tags[json.loads(body)["tag"]] = self._commit_of(repository, revision).oid
        return {}

    def preupload(self, repo, revision, query, body):
        files = self._commit_of(self._repository(repo, True, query), revision).files
        return {
            "files": [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if _is_lfs(each["path"], each["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": _compared(files.get(each["path"])),
                }
                for each in json.loads(body)["files"]
            ]
        }

    def lfs_batch(self, repo, query, body):
        self._repository(repo)  # (also for pull requests)
        if self._user() is None:
            raise Answer(401, "Invalid username or password.")
        objects = []
        for each in json.loads(body)["objects"]:
            entry = {"oid": each["oid"], "size": each["size"], "authenticated": True}
            if each["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/lfs/{each['oid']}", "header": {}}
                entry["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.hub.url}/lfs/{each['oid']}/verify", "header": {}},
                }
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid, query, body):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, "the content is not what its name says")
        self.hub.objects[oid] = body
        return b""

    def lfs_verify(self, oid, query, body):
        if len(self.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
            raise Answer(404, "no such object")
        return {}

    def commit(self, repo, revision, query, body):
        repository = self._repository(repo, True, query)
        if self.hub.before_commit is not None:
            self.hub.before_commit()
        lines = [json.loads(line) for line in body.splitlines() if line]
        header = lines[0]["value"]
        with self.hub.lock:
            if revision not in repository.branches:
                raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            head = repository.branches[revision]
            if header.get("parentCommit") not in (None, head):
                raise Answer(412, "A commit has happened since. Please refresh and try again.")
            files, added, deleted = repository.commits[head].files, {}, []
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    added[value["path"]] = File(base64.b64decode(value["content"]), False)
                elif line["key"] == "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise Answer(400, f"LFS object {value['oid']} was not uploaded")
                    added[value["path"]] = File(self.hub.objects[value["oid"]], True)
                elif value["path"] in files:
                    deleted.append(value["path"])
                else:
                    raise Answer(404, "A file with this name doesn't exist", "EntryNotFound")
            pull_request = None
            if "create_pr" in query:
                number = sum(name.startswith("refs/pr/") for name in repository.branches) + 1
                revision, pull_request = f"refs/pr/{number}", f"{self.hub.url}/{repo}/discussions/{number}"
                repository.branches[revision] = head
            done = repository.commit(revision, header["summary"], added, deleted)
        return {
            "success": True,
            "commitOid": done.oid,
            "commitUrl": f"{self.hub.url}/{repo}/commit/{done.oid}",
            "pullRequestUrl": pull_request,
            "hookOutput": "",
        }

    def resolve(self, repo, revision, file, query, body):
        repository = self._repository(repo)
        if repository.gated and (user := self._user()) not in {repository.owner, *repository.readers}:
            raise Answer(403 if user else 401, "Access to this model is restricted", "GatedRepo")
        commit = self._commit_of(repository, revision)
        if file not in commit.files:
            missing = Answer(404, "Entry not found", "EntryNotFound")
            missing.headers["X-Repo-Commit"] = commit.oid
            raise missing
        found = commit.files[file]
        if found.lfs:
            self.hub.objects[found.sha256] = found.content
            return 302, b"", {
                "X-Repo-Commit": commit.oid,
                "X-Linked-Etag": f'"{found.sha256}"',
                "X-Linked-Size": str(len(found.content)),
                "Location": f"{self.hub.cdn_url}/{found.sha256}",
            }  # fmt: skip
        return self._content(found.content, {"X-Repo-Commit": commit.oid, "ETag": f'"{found.oid}"'})

    def cdn(self, oid, query, body):
        if "Authorization" in self.headers:
            raise Answer(400, "a token was sent to a signed address")
        return self._content(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _content(self, content: bytes, headers: dict[str, str]):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        if wanted is None:
            return 200, content, headers
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        return 206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}


def _compared(file: File | None) -> str | None:
    """By what the client tells that a file has not changed."""
    return file and (file.sha256 if file.lfs else file.oid)


def _entry(path: str, file: File) -> dict[str, object]:
    entry = {"type": "file", "oid": file.oid, "size": len(file.content), "path": path}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry


_MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"
_ENDPOINTS = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", _MODEL, _Handler.info),
    ("GET", rf"{_MODEL}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"{_MODEL}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", _Handler.tree),
    ("POST", rf"{_MODEL}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("GET", rf"{_MODEL}/refs", _Handler.refs),
    ("POST", rf"{_MODEL}/branch/(?P<name>[^/]+)", _Handler.branch),
    ("POST", rf"{_MODEL}/tag/(?P<revision>[^/]+)", _Handler.tag),
    ("POST", rf"{_MODEL}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"{_MODEL}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]+)", _Handler.lfs_put),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]+)/verify", _Handler.lfs_verify),
    ("GET|HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
    ("GET|HEAD", r"/cdn/(?P<oid>[0-9a-f]+)", _Handler.cdn),
]
