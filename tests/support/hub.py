"""A hub on loopback: the part of the Hugging Face hub's API that its library uses to upload a commit and to fetch one.

Small files come in the commit, `.safetensors` and `.pt2` by Git LFS, as on the hub without Xet (HF_HUB_DISABLE_XET).
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from huggingface_hub import constants

from tests.support.servers import Answer, FaultyServer, serve

WRITER = "hf_writer"
"""The token that may do all."""
_LARGE = (".safetensors", ".pt2")


@dataclass
class Repository:
    """Its branches, and the files of every commit."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})


class Hub:
    """What is on the hub, and its server."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """What was uploaded by LFS, by sha256."""
        self.server = FaultyServer()
        self.before_commit: Callable[[], object] = lambda: None
        """What else happens before the next commits."""

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """What the hub answers to a request."""
        may_write = headers.get("authorization") == f"Bearer {WRITER}"
        path = path.partition("?")[0]
        if found := re.fullmatch(r"/lfs/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.objects[found[1]] = body
            return 200, [("Content-Length", "0")], b""
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return _json({"errors": [], "warnings": []})
        if method == "POST" and not may_write:
            return _failed(401 if "authorization" not in headers else 403, "")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for pattern, handle in (
            (r"/api/models/(.+?)/branch/(.+)", self._branch),
            (r"/api/models/(.+?)/preupload/(.+)", self._preupload),
            (r"/(.+?)\.git/info/lfs/objects/(batch)", self._batch),
            (r"/api/models/(.+?)/commit/(.+)", self._commit),
            (r"/api/models/(.+?)/revision/(.+)", self._info),
            (r"/api/models/(.+?)/tree/(.+)", self._tree),
            (r"/(.+?)/resolve/(.+)", self._resolve),
        ):
            if found := re.fullmatch(pattern, path):
                repository = self.repositories.get(found[1])
                if repository is None or (repository.private and not may_write):
                    return _failed(404 if "authorization" in headers else 401, "RepoNotFound")
                return handle(repository, found[2], body)
        return _failed(404, "")

    def _create(self, wanted: dict[str, str]) -> Answer:
        name = f"{wanted['organization']}/{wanted['name']}"
        is_new = name not in self.repositories
        if is_new:
            self.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        status, headers, content = _json({"url": f"{self.server.url}/{name}"})
        return status if is_new else 409, headers, content

    def _branch(self, repository: Repository, name: str, body: bytes) -> Answer:
        repository.branches.setdefault(name, repository.branches["main"])
        return _json({})

    def _preupload(self, repository: Repository, branch: str, body: bytes) -> Answer:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(_LARGE) else "regular" for path in paths}
        return _json({"files": [{"path": p, "uploadMode": modes[p], "shouldIgnore": False} for p in paths]})

    def _batch(self, repository: Repository, _: str, body: bytes) -> Answer:
        wanted = json.loads(body)["objects"]
        actions = [{"upload": {"href": f"{self.server.url}/lfs/{of['oid']}"}} for of in wanted]
        return _json({"objects": [{**of, "actions": action} for of, action in zip(wanted, actions, strict=True)]})

    def _commit(self, repository: Repository, branch: str, body: bytes) -> Answer:
        """Lines of JSON: a header, then what becomes of each file."""
        self.before_commit()
        files = dict(repository.commits[repository.branches[branch]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") != repository.branches[branch]:
                return _failed(412, "")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        name = hashlib.sha1(body).hexdigest()
        repository.commits[name] = files
        repository.branches[branch] = name
        return _json({"commitUrl": f"{self.server.url}/any/model/commit/{name}", "commitOid": name})

    def _info(self, repository: Repository, revision: str, body: bytes) -> Answer:
        name = repository.branches.get(revision, revision)
        if name not in repository.commits:
            return _failed(404, "RevisionNotFound")
        return _json({"id": "any/model", "sha": name, "private": repository.private})

    def _tree(self, repository: Repository, commit: str, body: bytes) -> Answer:
        return _json(
            [
                {
                    "type": "file",
                    "path": path,
                    "size": len(content),
                    "oid": _etag(path, content),
                    **({"lfs": _pointer(content)} if path.endswith(_LARGE) else {}),
                }
                for path, content in repository.commits[commit].items()
            ]
        )

    def _resolve(self, repository: Repository, place: str, body: bytes) -> Answer:
        revision, _, path = place.partition("/")
        commit = repository.branches.get(revision, revision)
        content = repository.commits.get(commit, {}).get(path)
        if content is None:
            return _failed(404, "EntryNotFound")
        headers = {"ETag": _etag(path, content), "X-Repo-Commit": commit, "Content-Length": str(len(content))}
        return 200, list(headers.items()), content


def _etag(path: str, content: bytes) -> str:
    """As git names a small file, and LFS a large one."""
    if path.endswith(_LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _pointer(content: bytes) -> dict[str, object]:
    return {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}


def _json(value: object) -> Answer:
    content = json.dumps(value).encode()
    return 200, [("Content-Type", "application/json"), ("Content-Length", str(len(content)))], content


def _failed(status: int, code: str) -> Answer:
    return status, [("X-Error-Code", code), ("Content-Length", "0")], b""


@contextmanager
def serve_hub(cache: str, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the library takes for its own, with an empty cache and no token of this machine.

    What is set is what HF_ENDPOINT, HF_HOME and HF_HUB_DISABLE_XET mean to the library, which reads them once.
    """
    hub = Hub()
    with serve(hub.answer) as hub.server:
        url = hub.server.url
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"})
        patch.setattr(constants, "HF_HUB_CACHE", f"{cache}/cache")
        patch.setattr(constants, "HF_TOKEN_PATH", f"{cache}/token")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.delenv("HF_TOKEN", raising=False)
        yield hub
