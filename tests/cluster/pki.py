"""Certificates and kubeconfigs of one test cluster."""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """The one certificate authority of a test cluster; it writes its files into `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("cotenant-test-cluster")
        self._certificate = self._sign(self._name, self._key.public_key(), authority=True)
        self.pair = self._write("ca", self._certificate, self._key)

    @property
    def certificate(self) -> Path:
        return self.pair.certificate

    def server(self, name: str, addresses: Iterable[str] = ()) -> Pair:
        """A certificate for a server on loopback and `addresses`; it may also act as a client (etcd's peers do)."""
        key = ec.generate_private_key(ec.SECP256R1())
        serves = ("127.0.0.1", *addresses)
        return self._write(name, self._sign(_name(name), key.public_key(), serves=serves), key)

    def client(self, name: str, user: str, group: str = "") -> Pair:
        """A certificate that logs in as `user` of `group`."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._write(name, self._sign(_name(user, group), key.public_key()), key)

    def signing_key(self, name: str) -> Pair:
        """A bare key pair, for service account tokens; `certificate` is the public key."""
        key = ec.generate_private_key(ec.SECP256R1())
        public = self._folder / f"{name}.pub"
        public.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return Pair(public, self._write_key(name, key))

    def _sign(
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        *,
        authority: bool = False,
        serves: tuple[str, ...] = (),
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(_key_usage(authority), critical=True)
            # Python 3.13 and later verify strictly: they want both key identifiers.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if not authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if serves:
            names = [x509.DNSName("localhost"), *(x509.IPAddress(ip_address(address)) for address in serves)]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
        path = self._folder / f"{name}.crt"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return Pair(path, self._write_key(name, key))

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> Path:
        path = self._folder / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return path


def write_kubeconfig(path: Path, url: str, authority: bytes, user: dict[str, str]) -> Path:
    """A kubeconfig that holds everything it needs, readable by its owner only; `user` as kubeconfigs spell it."""
    cluster = {"server": url, "certificate-authority-data": _base64(authority)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "cotenant-test",
        "contexts": [{"name": "cotenant-test", "context": {"cluster": "cotenant-test", "user": "cotenant-test"}}],
        "clusters": [{"name": "cotenant-test", "cluster": cluster}],
        "users": [{"name": "cotenant-test", "user": user}],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1) + "\n")
    return path


def certificate_user(pair: Pair) -> dict[str, str]:
    """The `user` of a kubeconfig that logs in with a client certificate."""
    return {
        "client-certificate-data": _base64(pair.certificate.read_bytes()),
        "client-key-data": _base64(pair.key.read_bytes()),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _name(common: str, organization: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organization:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
