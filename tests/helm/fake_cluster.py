"""As much of a Kubernetes API server as Helm needs: discovery, and objects that are kept as they were sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

KINDS = {
    "v1": {"configmaps": "ConfigMap", "serviceaccounts": "ServiceAccount", "services": "Service", "pods": "Pod"},
    "apps/v1": {"daemonsets": "DaemonSet", "deployments": "Deployment"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "resource.k8s.io/v1": {"resourceclaimtemplates": "ResourceClaimTemplate"},
    "resource.k8s.io/v1beta2": {"resourceclaimtemplates": "ResourceClaimTemplate"},
    "monitoring.coreos.com/v1": {
        "servicemonitors": "ServiceMonitor",
        "podmonitors": "PodMonitor",
        "prometheusrules": "PrometheusRule",
    },
}
WITHOUT_OPERATOR = tuple(group for group in KINDS if not group.startswith("monitoring"))


class FakeCluster:
    """A server of ``version``, such as 1.37, that serves ``api_versions``."""

    def __init__(self, address: str, version: str, api_versions: Iterable[str]) -> None:
        self.address = address
        self.version = version
        self.api_versions = tuple(api_versions)
        self._by_path: dict[str, dict[str, Any]] = {}

    @property
    def objects(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the objects by kind and name."""
        return {(found["kind"], found["metadata"]["name"]): found for found in self._by_path.values()}

    @property
    def kubeconfig(self) -> str:
        """How to connect."""
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "fake", "cluster": {"server": self.address}}],
                "users": [{"name": "fake", "user": {}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
                "current-context": "fake",
            }
        )

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of an answer."""
        discovered = self._discover(path)
        if discovered is not None:
            return 200, discovered
        if method == "POST":
            sent = yaml.safe_load(body)
            path = f"{path}/{sent['metadata']['name']}"
            return 201, self._keep(path, sent)
        if method == "PATCH":  # server-side apply sends the object whole
            return 200, self._keep(path, yaml.safe_load(body))
        if method == "DELETE":
            return 200, self._by_path.pop(path, _not_found(path))
        found = self._by_path.get(path)
        return (200, found) if found is not None else (404, _not_found(path))

    def _keep(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        self._by_path[path] = sent
        return sent

    def _discover(self, path: str) -> dict[str, Any] | None:
        if path == "/version":
            major, minor = self.version.split(".")
            return {"major": major, "minor": minor, "gitVersion": f"v{self.version}.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups: dict[str, list[dict[str, str]]] = {}
            for group_version in self.api_versions:
                group, _, version = group_version.partition("/")
                if version:
                    groups.setdefault(group, []).append({"groupVersion": group_version, "version": version})
            named = [
                {"name": name, "versions": versions, "preferredVersion": versions[0]}
                for name, versions in groups.items()
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}
        group_version = path.removeprefix("/apis/").removeprefix("/api/")
        if group_version not in self.api_versions:
            return None
        verbs = ["create", "delete", "get", "list", "patch"]
        resources = [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True, "verbs": verbs}
            for plural, kind in KINDS[group_version].items()
        ]
        return {
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
        }  # fmt: skip


def _not_found(path: str) -> dict[str, Any]:
    message = f"{path} not found"
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
    return {**status, "message": message}


@contextmanager
def fake_cluster(version: str = "1.37", api_versions: Iterable[str] = tuple(KINDS)) -> Iterator[FakeCluster]:
    """Run a cluster during the block."""

    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # an answer in one piece: the second of two would wait 40 ms for an acknowledgement

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, answer = cluster.answer(self.command, urlsplit(self.path).path, body)
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _any  # noqa: N815 - the standard library's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Requests) as server:
        cluster = FakeCluster(f"http://127.0.0.1:{server.server_port}", version, api_versions)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield cluster
        finally:
            server.shutdown()
            thread.join()
