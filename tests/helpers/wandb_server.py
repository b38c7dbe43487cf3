"""A stand-in for the W&B server, enough for real runs, `wandb sync` and saved views. Standard library only.

with WandbServer() as server:
    environment = server.environment()   # for os.environ, or for a child process
    ...
    server.runs["abc"].history           # what arrived, as W&B would show it

It keeps the rules of the real server that clients rely on: a run exists from its first UpsertBucket on, lines land at
the offset that the client names, a client is told how many there are, and a row of history goes by its `_step`: of
two with the same one the later counts. (wandb/wandb pull requests 12189 and 12668: a file that is synced again gets the
steps that it got before, and two that start at the same step overwrite each other.)
"""

import base64
import gzip
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import quote, unquote

HOST, ENTITY, API_KEY = "127.0.0.1", "somebody", "0123456789abcdef" * 2 + "deadbeef"
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class ReceivedRun:
    """One run as the server knows it."""

    id: str
    project: str = ""
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    #: The lines of history by file-stream offset; one sent again replaces the one at its offset.
    lines: dict[int, str] = field(default_factory=dict)
    upserts: int = 0
    #: None while it is under way.
    exit_code: int | None = None
    preempting: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows in order of their steps. A gap between offsets is a client's error, and an assertion here."""
        assert sorted(self.lines) == list(range(len(self.lines))), f"gaps between offsets {sorted(self.lines)}"
        rows = [json.loads(self.lines[offset]) for offset in sorted(self.lines)]
        by_step = {row["_step"]: row for row in rows}
        return [by_step[step] for step in sorted(by_step)]

    def upsert(self, given: Mapping[str, Any]) -> None:
        """Take what an UpsertBucket says; what it leaves out stays as it was."""
        self.upserts += 1
        names = {"name": "displayName", "group": "groupName", "job_type": "jobType", "project": "project"}
        for ours, theirs in {**names, "tags": "tags"}.items():
            if given.get(theirs) is not None:
                setattr(self, ours, given[theirs])
        if given.get("config"):
            self.config = {key: entry["value"] for key, entry in json.loads(given["config"]).items()}
        if given.get("summaryMetrics"):
            self.summary = json.loads(given["summaryMetrics"])

    def stream(self, body: Mapping[str, Any]) -> None:
        """Take a message of the file stream."""
        for name, chunk in body.get("files", {}).items():
            if name == HISTORY:
                self.lines |= enumerate(chunk["content"], chunk["offset"])
            elif name == SUMMARY and chunk["content"]:
                self.summary = json.loads(chunk["content"][-1])
        self.preempting = self.preempting or bool(body.get("preempting"))
        if body.get("complete"):
            self.exit_code = body.get("exitcode")

    def bucket(self) -> dict[str, Any]:
        """The run in W&B's own words. `wandbConfig` with a key "t" is how a client knows that it has begun."""
        config = {key: {"value": value} for key, value in self.config.items()}
        tail = [self.lines[max(self.lines)]] if self.lines else []
        project = {"id": "project", "name": self.project, "entity": {"id": "entity", "name": ENTITY}}
        return {
            "id": base64.b64encode(self.id.encode()).decode(),
            "name": self.id,
            "displayName": self.name,
            "sweepName": None,
            "project": project,
            "tags": self.tags,
            "group": self.group,
            "notes": None,
            "config": json.dumps(config),
            "summaryMetrics": json.dumps(self.summary),
            "description": None,
            "historyLineCount": len(self.lines),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "jobType": self.job_type,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "wandbConfig": json.dumps({"t": 1}),
        }


@dataclass
class ReceivedArtifact:
    """One version of an artifact. Its manifest says which files there are; each file and the manifest are uploads."""

    name: str
    type: str
    aliases: list[str]
    metadata: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False

    def upload(self, name: str, body: bytes) -> None:
        """Take a file, or the manifest, which is the one without a name."""
        if name:
            self.files[name] = body
        else:
            self.manifest = json.loads(body)

    def commit(self) -> None:
        """The client says that all is there. It counts only when the manifest's files are."""
        promised = {name: entry["size"] for name, entry in self.manifest["contents"].items()}
        self.committed = promised == {name: len(body) for name, body in self.files.items()}


class WandbServer:
    """A server on this machine, with what it received in memory. A context manager."""

    def __init__(self) -> None:
        self.runs: dict[str, ReceivedRun] = {}
        self.projects: set[str] = set()
        #: Saved views (dashboards) by name: the variables of the last UpsertView2.
        self.views: dict[str, dict[str, Any]] = {}
        #: Reports by id: the variables of the last upsertView.
        self.reports: dict[str, dict[str, Any]] = {}
        #: Artifacts by id, in the order of their creation.
        self.artifacts: dict[str, ReceivedArtifact] = {}
        #: How often each operation was asked for, and how often the server was away when asked.
        self.operations: dict[str, int] = {}
        self.refused = 0
        self._answering, self._silent = threading.Event(), False
        self._answering.set()
        self._lock = threading.Lock()
        self._server = _Listener((HOST, 0), _handler(self))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._answering.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self._server.server_port}"

    @property
    def sent_again(self) -> int:
        """How many rows arrived that the server had already."""
        return sum(len(run.lines) - len(run.history) for run in self.runs.values())

    def environment(self) -> dict[str, str]:
        """What makes wandb talk to this server and to nothing else, whatever proxy there is."""
        own = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY, "WANDB_MODE": "online"}
        return {**own, "WANDB_ERROR_REPORTING": "false", "NO_PROXY": HOST, "no_proxy": HOST}

    def pause(self, silent: bool = False) -> None:
        """Be out of order until `resume`: every request is answered 503; silent: not before then."""
        self._silent = silent
        self._answering.clear()

    def resume(self) -> None:
        """Work again."""
        self._answering.set()

    def wait_for(self, run_id: str, rows: int, patience_s: float = 30.0) -> None:
        """Wait until a run has that many rows of history: clients send them when they see fit."""
        end = time.monotonic() + patience_s
        while run_id not in self.runs or len(self.runs[run_id].lines) < rows:
            assert time.monotonic() < end, f"no {rows} rows of {run_id} within {patience_s} s"
            time.sleep(0.05)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the answer to one request."""
        if not self._answering.is_set():
            self.refused += 1
            if self._silent:
                self._answering.wait()
            return 503, {"error": "out of order"}
        with self._lock:
            if path == "/graphql":
                request = json.loads(body)
                return 200, {"data": self._graphql(_operation(request), request.get("variables") or {})}
            if path.endswith("/file_stream"):
                run_id = path.split("/")[-2]
                self.runs[run_id].stream(json.loads(body))
                return 200, {"exitcode": None, "limits": {}}
            if path.startswith("/artifacts/"):
                artifact_id, _, name = unquote(path).removeprefix("/artifacts/").partition("/")
                self.artifacts[artifact_id].upload(name, body)
            return 200, {}  # uploads of a run's own files, and telemetry

    def _graphql(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        self.operations[operation] = self.operations.get(operation, 0) + 1
        user = {"id": "user", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "admin": False}
        match operation:
            case "Viewer" | "GetDefaultEntity":
                return {"viewer": {**user, "teams": {"edges": []}}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                run = self.runs.get(given["name"])
                owner = {"id": "entity", "name": ENTITY}
                bucket = run and run.bucket()
                return {"model": {"id": "project", "name": given["project"], "entity": owner, "bucket": bucket}}
            case "UpsertBucket":
                run = self.runs.setdefault(given["name"], ReceivedRun(given["name"]))
                run.upsert(given)
                self.projects.add(run.project)
                return {"upsertBucket": {"bucket": run.bucket(), "inserted": run.upserts == 1}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/storage/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
            case "GetProjects":
                own = {"entityName": given["entity"], "createdAt": "", "isBenchmark": False, "user": None}
                edges = [{"node": {**own, "id": name, "name": name}} for name in sorted(self.projects)]
                return {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}}
            case "CreateProject":
                self.projects.add(given["input"]["name"])
                return {"result": {"inserted": True}}
            case "UpsertView2":
                name = given.get("name") or given.get("id") or "view"
                self.views[name] = given
                return {"upsertView": {"view": {**given, "id": name, "name": name}, "inserted": True}}
            case "ProjectViews":
                edges = [{"node": self._report(name), "cursor": name} for name in self.reports]
                return {
                    "project": {"allViews": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}
                }
            case "upsertView":
                name = given["id"] or f"report{len(self.reports)}"
                self.reports[name] = given
                return {"upsertView": {"view": self._report(name), "inserted": given["id"] is None}}
        return self._artifact(operation, given)

    def _report(self, name: str) -> dict[str, Any]:
        given, time = self.reports[name], "2026-01-01T00:00:00Z"
        project = {"id": "project", "name": given["projectName"], "entityName": given["entityName"]}
        shown = {key: given[key] for key in ("name", "displayName", "description", "spec")}
        return {"id": name, **shown, "project": project, "user": None, "createdAt": time, "updatedAt": time}

    def _artifact(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """The operations of an artifact's upload, in their order."""
        match operation:
            case "ArtifactType":  # that the name is taken by another type matters to no test
                return {"project": None}
            case "CreateArtifact":  # pending: its files are still wanted
                asked, artifact_id = given["input"], f"artifact{len(self.artifacts)}"
                aliases = [alias["alias"] for alias in asked["aliases"]]
                metadata = json.loads(asked.get("metadata") or "{}")
                name, kind = asked["artifactCollectionName"], asked["artifactTypeName"]
                self.artifacts[artifact_id] = ReceivedArtifact(name, kind, aliases, metadata)
                sequence = {"id": name, "latestArtifact": None}
                artifact = {"id": artifact_id, "state": "PENDING", "artifactSequence": sequence}
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":  # asked twice: without a digest at first, then with it, for its upload
                artifact_id = given["artifactID"]
                manifest = {"id": artifact_id, "file": {"id": artifact_id, **self._upload(artifact_id, "")}}
                return {"createArtifactManifest": {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                nodes = [
                    {"artifact": {"id": file["artifactID"]}, **self._upload(file["artifactID"], file["name"])}
                    for file in given["input"]["artifactFiles"]
                ]
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CommitArtifact":
                self.artifacts[given["artifactID"]].commit()
                return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "digest"}}}
        return {}

    def _upload(self, artifact_id: str, name: str) -> dict[str, Any]:
        """Where a file of an artifact is to be put; no name: its manifest."""
        url = f"{self.url}/artifacts/{artifact_id}/{quote(name)}"
        return {"storagePath": f"{artifact_id}/{name}", "uploadUrl": url, "uploadHeaders": []}


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle (tests kill some) is no news."""


def _operation(request: Mapping[str, Any]) -> str:
    """The name of a GraphQL operation: `mutation UpsertBucket ($id: ...` is UpsertBucket."""
    if request.get("operationName"):
        return str(request["operationName"])
    words = str(request["query"]).replace("(", " ").replace("{", " ").split()
    return words[1] if len(words) > 1 else ""


def _handler(owner: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            status, answer = owner.answer(self.command, self.path, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _do

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the tests' output is the tests'."""

    return Handler
