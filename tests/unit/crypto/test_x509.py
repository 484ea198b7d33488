"""Certificates, proven by real TLS handshakes of the standard library."""

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509 as certificates
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from edgekit.crypto import x509
from edgekit.errors import InputError, SystemFault


@pytest.fixture(scope="module")
def authority() -> x509.CertificateAuthority:
    return x509.CertificateAuthority.create("test fleet CA")


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """TLS in memory; the server's side of it. Raises ssl.SSLError when one side refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(10):
        for side in (theirs, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ours


def _contexts(
    authority: x509.CertificateAuthority, tmp_path: Path, *, crl: bytes = b"", device: str = "dev-1"
) -> tuple[ssl.SSLContext, ssl.SSLContext, bytes]:
    ca = authority.certificate_pem.decode()
    key, certificate = authority.issue_server(["fleet.test"], ["127.0.0.1", "::1"])
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=ca)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(*_files(tmp_path, "server", certificate, key))
    if crl:
        (tmp_path / "crl.pem").write_bytes(crl)
        server.load_verify_locations(tmp_path / "crl.pem")
        server.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    device_key = x509.new_device_key()
    device_certificate = authority.sign_csr(x509.make_csr(device_key, "asked-for"), device)
    client = ssl.create_default_context(cadata=ca)
    for context in (server, client):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(*_files(tmp_path, "device", device_certificate, device_key))
    return server, client, device_certificate


def _files(folder: Path, name: str, certificate: bytes, key: bytes) -> tuple[Path, Path]:
    (folder / f"{name}.pem").write_bytes(certificate)
    (folder / f"{name}.key").write_bytes(key)
    return folder / f"{name}.pem", folder / f"{name}.key"


@pytest.mark.parametrize("name", ["fleet.test", "127.0.0.1", "::1"])
def test_device_and_server_know_each_other(
    authority: x509.CertificateAuthority, tmp_path: Path, name: str
) -> None:
    server, client, _ = _contexts(authority, tmp_path)
    peer = _handshake(server, client, name).getpeercert()
    assert peer is not None
    assert peer["subject"] == ((("commonName", "dev-1"),),)


def test_a_name_that_is_not_in_the_certificate_is_refused(
    authority: x509.CertificateAuthority, tmp_path: Path
) -> None:
    server, client, _ = _contexts(authority, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(server, client, "other.test")


def test_another_authority_is_refused(authority: x509.CertificateAuthority, tmp_path: Path) -> None:
    stranger = x509.CertificateAuthority.create("test fleet CA")
    server, _client, _ = _contexts(stranger, tmp_path)
    server.load_verify_locations(cadata=authority.certificate_pem.decode())
    ours = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(server, ours, "fleet.test")


def test_a_device_certificate_is_no_server_and_a_server_no_device(
    authority: x509.CertificateAuthority, tmp_path: Path
) -> None:
    server, client, _ = _contexts(authority, tmp_path)
    client.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with pytest.raises(ssl.SSLError):
        _handshake(server, client, "fleet.test")


def test_a_revoked_device_is_refused(authority: x509.CertificateAuthority, tmp_path: Path) -> None:
    server, client, _ = _contexts(authority, tmp_path, crl=authority.crl([12345]))
    _handshake(server, client, "fleet.test")
    revoked = x509.serial_number((tmp_path / "device.pem").read_bytes())
    (tmp_path / "next.pem").write_bytes(authority.crl([revoked, 12345], number=2))
    fresh = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority.certificate_pem.decode())
    fresh.verify_mode = ssl.CERT_REQUIRED
    fresh.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    fresh.load_verify_locations(tmp_path / "next.pem")
    fresh.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
        _handshake(fresh, client, "fleet.test")


def test_the_server_chooses_the_device_id(authority: x509.CertificateAuthority) -> None:
    request = x509.make_csr(x509.new_device_key(), "admin")
    assert x509.common_name(authority.sign_csr(request, "dev-7")) == "dev-7"


def test_proof_of_possession_is_checked(authority: x509.CertificateAuthority) -> None:
    """A request whose key was swapped for somebody else's after it was signed."""
    mine = certificates.load_pem_x509_csr(x509.make_csr(x509.new_device_key(), "a"))
    theirs = certificates.load_pem_x509_csr(x509.make_csr(x509.new_device_key(), "a"))
    point = ec.EllipticCurvePublicKey

    def raw(request: certificates.CertificateSigningRequest) -> bytes:
        key = request.public_key()
        assert isinstance(key, point)
        numbers = key.public_numbers()
        return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")

    forged = mine.public_bytes(Encoding.DER).replace(raw(mine), raw(theirs))
    pem = certificates.load_der_x509_csr(forged).public_bytes(Encoding.PEM)
    with pytest.raises(InputError, match="signature does not hold"):
        authority.sign_csr(pem, "dev-1")


def test_requests_that_are_none(authority: x509.CertificateAuthority) -> None:
    name = certificates.Name([])
    builder = certificates.CertificateSigningRequestBuilder().subject_name(name)
    wrong_curve = builder.sign(ec.generate_private_key(ec.SECP384R1()), SHA256())
    wrong_kind = builder.sign(ed25519.Ed25519PrivateKey.generate(), None)
    good = x509.make_csr(x509.new_device_key(), "a")
    bad = [
        b"",
        b"hello",
        good[:100],
        good.replace(b"A", b"B"),
        good + b"x" * 20_000,
        wrong_curve.public_bytes(Encoding.PEM),
        wrong_kind.public_bytes(Encoding.PEM),
    ]
    for pem in bad:
        with pytest.raises(InputError, match="certificate request"):
            authority.sign_csr(pem, "dev-1")


@pytest.mark.parametrize("device", ["", "a/b", "a+b", "#", "a b", "-a", "x" * 64, "é", "a\nb"])
def test_bad_device_ids(authority: x509.CertificateAuthority, device: str) -> None:
    with pytest.raises(InputError, match="bad device id"):
        authority.sign_csr(x509.make_csr(x509.new_device_key(), "a"), device)
    with pytest.raises(InputError, match="bad device id"):
        x509.make_csr(x509.new_device_key(), device)


def test_authority_survives_a_folder(authority: x509.CertificateAuthority, tmp_path: Path) -> None:
    authority.save(tmp_path / "ca")
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    again = x509.CertificateAuthority.load(tmp_path / "ca")
    assert again.certificate_pem == authority.certificate_pem
    assert again.pin == authority.pin
    x509.CertificateAuthority.create("other").save(tmp_path / "other")
    (tmp_path / "ca" / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(InputError, match="does not belong"):
        x509.CertificateAuthority.load(tmp_path / "ca")
    with pytest.raises(InputError):
        x509.CertificateAuthority.load(tmp_path / "absent")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemFault):
        authority.save(tmp_path / "file" / "ca")


def test_a_certificate_that_is_none() -> None:
    with pytest.raises(InputError):
        x509.common_name(b"hello")
