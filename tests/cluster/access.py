"""How to reach a running test cluster: kubectl, the API, and kubeconfigs for service accounts."""

import base64
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from tests.cluster import kwok, pki
from tests.cluster.api import Api, Object

TOKEN_LIFETIME = 24 * 3600
"""Seconds a service account's token is good for."""


class KubectlError(Exception):
    """kubectl ended with an error; the text is what it said."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster, seen by its administrator."""

    directory: Path
    """Where its files are; new kubeconfigs are written here."""
    kubeconfig: Path
    kubectl_path: Path

    @cached_property
    def url(self) -> str:
        """The API server's address, https://127.0.0.1:PORT."""
        url: str = yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        return url

    @cached_property
    def api(self) -> Api:
        """The administrator's client."""
        return Api(self.kubeconfig)

    def kubectl(self, *arguments: str | Path, input: str | None = None) -> str:
        """What `kubectl ARGUMENTS` prints; KubectlError if it fails."""
        command = [str(self.kubectl_path), *(str(argument) for argument in arguments)]
        done = subprocess.run(command, input=input, env=self.environment, text=True, capture_output=True)
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(command[1:])}: {done.stderr.strip()}")
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """An environment in which kubectl sees this cluster and nothing of the user's own settings."""
        return {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.directory / "kubectl-cache"),
            "KUBECTL_KUBERC": "false",
        }

    def service_account_kubeconfig(self, namespace: str, name: str, pod: Object | None = None) -> Path:
        """A kubeconfig with a fresh token of that ServiceAccount: exactly its rights, and no more.

        With `pod` the token is that pod's, as its kubelet would fetch it: it says on which node.
        """
        request: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_LIFETIME},
        }
        if pod:
            meta = pod["metadata"]
            bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
            request["spec"]["boundObjectRef"] = bound
        path = f"api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token = self.api.request("POST", path, request)["status"]["token"]
        cluster = yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"])
        target = self.directory / f"{namespace}-{name}.kubeconfig"
        return pki.write_kubeconfig(target, self.url, authority, {"token": token})

    def add_gpu_node(
        self, name: str, product: str, gpus: int, memory_mib: int, labels: Mapping[str, str] | None = None
    ) -> Object:
        """Create a simulated node; Ready about a second later. `memory_mib` is NVML's total of one GPU."""
        return self.api.create(kwok.gpu_node(name, product, gpus, memory_mib, labels))

    def lose_node(self, name: str) -> None:
        """Let a simulated node fall silent; Kubernetes calls it lost some seconds later (`node_loss_seconds`)."""
        self.api.patch("v1", "Node", name, {"metadata": {"labels": {kwok.SIMULATED: None}}})

    def return_node(self, name: str) -> None:
        """Let a lost node speak again; Ready a second or two later."""
        self.api.patch("v1", "Node", name, {"metadata": {"labels": {kwok.SIMULATED: "true"}}})
