"""The stand-in W&B server with what W&B's public API reads: the runs of a project, page by page, and their history."""

import json
from typing import Any

from wandb_server import ReceivedRun, WandbServer


class ReadableServer(WandbServer):
    """Answers `wandb.Api().runs(...)` and `run.history(...)` from what it received."""

    #: Runs on a page at most, whatever a client asks for.
    most_a_page = 3

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Queries of the public API, which begin with a comment; anything else as before."""
        request = json.loads(body) if path == "/graphql" else {}
        query, given = str(request.get("query", "")), request.get("variables") or {}
        if self._answering.is_set() and "query Runs(" in query:
            return 200, {"data": {"project": self._page(given)}}
        if self._answering.is_set() and "query RunFullHistory(" in query:
            rows = self.runs[given["name"]].history[: given["samples"]]
            return 200, {"data": {"project": {"run": {"history": [json.dumps(row) for row in rows]}}}}
        return super().answer(method, path, body)

    def _page(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """One page of a project's runs, oldest first; None for a project that is not there."""
        if given["project"] not in self.projects:
            return None
        wanted = set(json.loads(given["filters"])["tags"]["$in"])
        names = [run.id for run in self.runs.values() if wanted & set(run.tags) and run.project == given["project"]]
        begin = names.index(given["cursor"]) + 1 if given.get("cursor") else 0
        end = begin + min(self.most_a_page, given["perPage"])
        edges = [{"node": self._node(self.runs[name]), "cursor": name} for name in names[begin:end]]
        page = {"endCursor": edges[-1]["cursor"] if edges else None, "hasNextPage": end < len(names)}
        runs = {"edges": edges, "pageInfo": page}
        return {"internalId": "1", "runCount": len(names), "readOnly": False, "runs": runs}

    def _node(self, run: ReceivedRun) -> dict[str, Any]:
        state = "running" if run.exit_code is None else "failed" if run.exit_code else "finished"
        place = list(self.runs).index(run.id)
        return {
            "projectId": "1", "id": run.id, "name": run.id, "displayName": run.name, "tags": run.tags, "state": state,
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}), "group": run.group,
            "jobType": run.job_type, "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}",
            "createdAt": f"2026-01-01T00:{place // 60:02d}:{place % 60:02d}", "user": {"name": "", "username": ""},
            "sweepName": None, "historyLineCount": len(run.lines), "commit": None, "readOnly": False,
            "heartbeatAt": None, "description": None, "notes": None, "historyKeys": None,
        }  # fmt: skip
