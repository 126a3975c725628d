"""The kubelet's log endpoint, so that `kubectl logs` and pods/log work for simulated engines."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Callable

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Log = Callable[[str, str], str | None]
"""(namespace, pod) -> what its container printed; None = no such pod here."""
Ended = Callable[[str, str], bool]


def _tls() -> ssl.SSLContext:
    """A self-signed certificate: the API server is told no kubelet CA, so it takes any."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "simulated-kubelet")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    handle, path = tempfile.mkstemp()
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(certificate.public_bytes(serialization.Encoding.PEM))
            file.write(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
            )
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    return context


class LogServer:
    """`/containerLogs/{namespace}/{pod}/{container}` on loopback, for all simulated nodes at once."""

    def __init__(self, log: Log, ended: Ended) -> None:
        self._log, self._ended = log, ended
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=_tls())
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        namespace, pod = request.match_info["namespace"], request.match_info["pod"]
        text = self._log(namespace, pod)
        if text is None or request.query.get("previous") == "true":
            what = "previous terminated container" if text is not None else "container"
            return web.Response(status=400, text=f'{what} "{request.match_info["container"]}" in pod "{pod}" not found')
        if "tailLines" in request.query:
            count = int(request.query["tailLines"])
            text = "".join(text.splitlines(keepends=True)[-count:]) if count else ""
        if "limitBytes" in request.query:
            text = text.encode()[: int(request.query["limitBytes"])].decode(errors="ignore")
        if request.query.get("follow") not in ("true", "1"):
            return web.Response(text=text)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        await response.write(text.encode())
        sent = len(self._log(namespace, pod) or "")
        while not self._ended(namespace, pod):
            await asyncio.sleep(0.3)
            whole = self._log(namespace, pod) or ""
            if len(whole) > sent:
                await response.write(whole[sent:].encode())
                sent = len(whole)
        return response
