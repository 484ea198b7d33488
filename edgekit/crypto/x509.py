"""The fleet's own certificate authority: ECDSA P-256, server and device certificates, CRL.

A device certificate's common name is the device id that the server chose, whatever the request says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.crypto.keys import read_key
from edgekit.errors import InputError
from edgekit.files import storage_fault, write_bytes

CA_DAYS = 3650
LEAF_DAYS = 825
BACKDATE = timedelta(days=2)
"""Certificates begin in the past, for devices whose clocks are a little slow."""
MAX_CSR_BYTES = 16 * 1024
DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Fits a common name (64), an MQTT topic level and a file name."""


class CertificateAuthority:
    """Issues certificates. Which serials are revoked is the caller's record; `crl` signs that list."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, common_name: str) -> CertificateAuthority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(common_name)
        builder = _builder(name, name, key.public_key(), CA_DAYS, key.public_key())
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .sign(key, SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> CertificateAuthority:
        """Read ca.key and ca.pem. Raises InputError when they are missing or do not belong together."""
        key = _private(read_key(folder / "ca.key"), str(folder / "ca.key"))
        certificate = _certificate(read_key(folder / "ca.pem"), str(folder / "ca.pem"))
        if certificate.public_key() != key.public_key():
            raise InputError(f"{folder}: ca.key does not belong to ca.pem", "restore both from one backup")
        return cls(key, certificate)

    def save(self, folder: Path) -> None:
        """Write ca.key (0600) and ca.pem."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise storage_fault(folder, exc) from None
        write_bytes(folder / "ca.key", _private_pem(self._key), mode=0o600)
        write_bytes(folder / "ca.pem", self.certificate_pem)

    @property
    def certificate_pem(self) -> bytes:
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def pin(self) -> str:
        """Hex SHA-256 of `certificate_pem`, as tokens carry it."""
        return hashlib.sha256(self.certificate_pem).hexdigest()

    def issue_server(self, names: Sequence[str], ips: Sequence[str] = ()) -> tuple[bytes, bytes]:
        """(private key PEM, certificate PEM) of a TLS server with these DNS names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [x509.DNSName(name) for name in names]
        addresses = [x509.IPAddress(ip_address(ip)) for ip in ips]
        certificate = self._leaf(
            (*names, *ips)[0],
            key.public_key(),
            ExtendedKeyUsageOID.SERVER_AUTH,
            x509.SubjectAlternativeName([*alternatives, *addresses]),
        )
        return _private_pem(key), certificate

    def sign_csr(self, csr_pem: bytes, device_id: str) -> bytes:
        """Certificate PEM for the key of a request; the common name is `device_id`.

        Raises InputError: not a request, not P-256, or its sender does not hold the private key.
        """
        check_device_id(device_id)
        if len(csr_pem) > MAX_CSR_BYTES:
            raise InputError("certificate request: too large", "send one PKCS#10 request")
        try:
            request = x509.load_pem_x509_csr(csr_pem)
            public, holds = request.public_key(), request.is_signature_valid
        except Exception:  # cryptography raises many kinds for foreign bytes, some of them from Rust
            raise InputError("certificate request: not PKCS#10 in PEM form", "send a fresh request") from None
        if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
            raise InputError("certificate request: the key is not ECDSA P-256", "make a P-256 key")
        if not holds:
            raise InputError("certificate request: its signature does not hold", "send a fresh request")
        return self._leaf(device_id, public, ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def crl(self, revoked: Iterable[int] = (), *, number: int = 1, days: int = 3650) -> bytes:
        """CRL PEM that revokes these serial numbers; `number` must grow with every list."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - BACKDATE)
            .next_update(now + timedelta(days=days))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(_authority(self._key.public_key()), critical=False)
        )
        for serial in sorted(set(revoked)):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - BACKDATE)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def _leaf(
        self,
        common_name: str,
        public: ec.EllipticCurvePublicKey,
        purpose: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
    ) -> bytes:
        builder = (
            _builder(
                _name(common_name[:64]), self._certificate.subject, public, LEAF_DAYS, self._key.public_key()
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)


def new_device_key() -> bytes:
    """A fresh P-256 private key, PKCS8 PEM. The caller stores it 0600."""
    return _private_pem(ec.generate_private_key(ec.SECP256R1()))


def make_csr(key_pem: bytes, device_id: str) -> bytes:
    """PKCS#10 request PEM, signed by the device's key: its proof of possession."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(check_device_id(device_id)))
    return request.sign(_private(key_pem, "device key"), SHA256()).public_bytes(Encoding.PEM)


def check_device_id(device_id: str) -> str:
    """`device_id` itself. Raises InputError when it could not be a topic level and a common name."""
    if not DEVICE_ID.fullmatch(device_id):
        raise InputError(
            f"bad device id {device_id!r}", "use up to 63 letters, digits, dots, dashes, underscores"
        )
    return device_id


def serial_number(certificate_pem: bytes) -> int:
    return _certificate(certificate_pem, "certificate").serial_number


def common_name(certificate_pem: bytes) -> str:
    """The subject's common name: a device certificate's device id."""
    names = _certificate(certificate_pem, "certificate").subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    days: int,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_authority(issuer_key), critical=False)
    )


def _authority(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _private(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise InputError(f"{what}: not a private key in PEM form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{what}: not an elliptic curve key")
    return key


def _certificate(pem: bytes, what: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise InputError(f"{what}: not a certificate in PEM form") from None


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
