"""How Cotenant reaches the API server: plain dicts over `kubernetes.aio`. The only importer of `kubernetes`.

Objects go in and come out as their YAML would say them. The typed models are strict, slow and drop unknown fields
(3.6 s and 367 MiB to list 5,000 pods against 0.5 s and 167 MiB for dicts), so they are not used.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import yaml
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from cotenant import answers
from cotenant.core.snapshot import Manifest
from cotenant.errors import ClusterError
from cotenant.verbs import ATTEMPTS, REQUEST_SECONDS, Verbs

LONGEST_WAIT = 20.0

OnRequest = Callable[[str, str, int, float], None]
"""Called after each attempt with (verb, kind, HTTP status or 0, seconds): for metrics."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the API server is and how to prove who asks, for other clients (kopf)."""

    server: str
    ca_path: str | None
    insecure: bool
    scheme: str | None
    token: str | None
    certificate_path: str | None
    private_key_path: str | None
    proxy: str | None


def find_kubeconfig(explicit: str | None = None) -> str | None:
    """The kubeconfig a person at a terminal means: the one named, $KUBECONFIG, or ~/.kube/config; None = in-cluster.

    Only command-line views call this. The controller and the agent use exactly what they are given.
    """
    if explicit:
        return explicit
    if os.environ.get("KUBECONFIG"):
        return os.environ["KUBECONFIG"]
    default = os.path.expanduser("~/.kube/config")
    return default if os.path.exists(default) and "KUBERNETES_SERVICE_HOST" not in os.environ else None


async def _load(kubeconfig: str | None, context: str | None) -> Configuration:
    """The client's configuration from a kubeconfig, or from the pod's ServiceAccount where none is named."""
    configuration = Configuration()
    try:
        if kubeconfig is None:
            kube_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
                kubeconfig, context, configuration, persist_config=False
            )
    except (kube_config.ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as e:
        if kubeconfig is None:
            raise ClusterError(
                f"no kubeconfig was named and this is not a pod with a ServiceAccount ({e}); "
                "name one with --kubeconfig or COTENANT_KUBECONFIG"
            ) from e
        raise ClusterError(f"reading the kubeconfig {kubeconfig}: {' '.join(str(e).split())}") from e
    configuration.connection_pool_maxsize = 64
    # left to aiohttp, the proxy and a ~/.netrc are looked up in a thread at every single request
    configuration.client_session_kwargs = {"trust_env": False}
    configuration.proxy = configuration.proxy or _proxy(configuration.host)
    return configuration


def _proxy(server: str) -> str | None:
    """The proxy that the environment names for an API server; None = none."""
    address = urlsplit(server)
    return None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)


class Kube(Verbs):
    """A connection to one API server.

    Transient trouble (429, 5xx, a lost connection) is retried with back-off before that.
    """

    def __init__(self, configuration: Configuration, kubeconfig: str | None, context: str | None) -> None:
        super().__init__()
        self._configuration = configuration
        self._source = (kubeconfig, context)
        self._rest = RESTClientObject(configuration)
        self._timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, connect=10)
        self.on_request: OnRequest | None = None

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Self:
        """A client for the cluster a kubeconfig names; without one, for the cluster this pod runs in."""
        return cls(await _load(kubeconfig, context), kubeconfig, context)

    async def close(self) -> None:
        """Close the connections."""
        await self._rest.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self._configuration.host)

    async def connection(self) -> Connection:
        """What another client needs to reach the same API server as the same user, read anew."""
        await self._reload()
        scheme, _, token = (await self._authorization() or "").partition(" ")
        return Connection(
            server=self.server,
            ca_path=self._configuration.ssl_ca_cert,
            insecure=not self._configuration.verify_ssl,
            scheme=scheme.capitalize() or None,
            token=token.strip() or None,
            certificate_path=self._configuration.cert_file,
            private_key_path=self._configuration.key_file,
            proxy=self._configuration.proxy,
        )

    # ---------------------------------------------------------------------------------------------------- transport
    async def _request(
        self,
        method: str,
        path: str,
        doing: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        *,
        kind: str,
        media: str = "application/json",
        attempts: int = ATTEMPTS,
        seconds: float = REQUEST_SECONDS,
    ) -> bytes:
        """One request, tried again while that makes sense; the body of its answer."""
        url = f"{self.server}{path}?{urlencode(query)}" if query else f"{self.server}{path}"
        timeout = self._timeout if seconds == REQUEST_SECONDS else aiohttp.ClientTimeout(total=seconds, connect=5)
        attempt, reloaded = 0, False
        while True:
            attempt += 1
            begun = time.monotonic()
            status, data, wait, cause = 0, b"", 0.0, None
            try:
                headers = {"Accept": "application/json", "Content-Type": media, "User-Agent": "cotenant"}
                if authorization := await self._authorization():
                    headers["Authorization"] = authorization
                response = await self._rest.request(  # type: ignore[no-untyped-call]
                    method, url, headers=headers, body=body, _request_timeout=timeout
                )
                data = await response.read()
                status, wait = response.status, answers.seconds(response.headers.get("Retry-After"))
            except (aiohttp.ClientError, TimeoutError, OSError, kube_config.ConfigException) as e:
                # the last where a credential plugin, or the token's file, gives nothing for the moment
                cause = e
            finally:
                if self.on_request:
                    self.on_request(method, kind, status, time.monotonic() - begun)
            if 200 <= status < 300:
                return data
            problem = answers.problem(status, data, cause, doing, self.server)
            if status == 401 and not reloaded:
                reloaded = True
                await self._reload()
                continue
            if attempt >= attempts or not answers.is_transient(status, data, method, body):
                raise problem from cause
            backoff = 0.1 * 2 ** (attempt - 1)
            await asyncio.sleep(min(LONGEST_WAIT, max(wait, backoff)) * random.uniform(0.8, 1.2))

    async def _authorization(self) -> str | None:
        """The Authorization header; a pod's token is read anew from its file as it rotates."""
        return await self._configuration.get_api_key_with_prefix("BearerToken")

    async def _reload(self) -> None:
        """Read the credentials again: a token file was rotated, or a credential plugin has a newer one."""
        fresh = await _load(*self._source)
        self._configuration.api_key = fresh.api_key
        self._configuration.refresh_api_key_hook = fresh.refresh_api_key_hook
