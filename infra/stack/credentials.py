"""What the servers of the stack ask for: generated once, kept in a file that only its owner can read."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.errors import ConfigurationError
from infra.references import Reference

USER = "clearwell"
_TEN_YEARS = timedelta(days=3652)


def _secret() -> str:
    """Hexadecimal, so that it stands unquoted in an address, in SQL and in an INI file."""
    return secrets.token_hex(24)


class Credentials(Reference):
    """One secret a door.

    Attributes
    ----------
    postgres : dict
        Password of each database role.
    access_key, secret_key : str
        Of the object store.
    prefect, mlflow : str
        Password of the user ``clearwell``.
    session : str
        What MLflow signs its forms with.
    """

    postgres: dict[str, str]
    access_key: str
    secret_key: str
    prefect: str
    mlflow: str
    session: str

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every value that must not appear anywhere else."""
        return (*self.postgres.values(), self.secret_key, self.prefect, self.mlflow, self.session)


def generate(roles: tuple[str, ...]) -> Credentials:
    """New credentials."""
    return Credentials(
        postgres={role: _secret() for role in roles},
        access_key=secrets.token_hex(10),
        secret_key=_secret(),
        prefect=_secret(),
        mlflow=_secret(),
        session=_secret(),
    )


def load(path: Path) -> Credentials:
    """Credentials as they were kept.

    Raises
    ------
    ConfigurationError
        If the file is damaged, or others can read it.
    """
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(
            f"Others on this machine can read {path}. Close it with `chmod 600 {path}`, "
            "then give every server a new password with `clearwell rotate-credentials`."
        )
    try:
        return Credentials.model_validate_json(path.read_text())
    except ValueError:
        raise ConfigurationError(
            f"{path} is damaged. Make new credentials with `clearwell rotate-credentials`; no data is lost by that."
        ) from None


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as stream:
            stream.write(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def keep(credentials: Credentials, path: Path) -> None:
    """Write credentials to their file."""
    write_private(path, json.dumps(credentials.model_dump(), indent=2) + "\n")


def write_certificates(folder: Path) -> None:
    """An authority of one's own and one certificate, for what the object store's parts say to each other.

    They refuse every connection that does not show this certificate.
    """
    authority_key, authority = _certificate("clearwell authority", None)
    key, certificate = _certificate("clearwell object store", (authority_key, authority))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    write_private(folder / "authority.pem", authority.public_bytes(serialization.Encoding.PEM).decode())
    write_private(folder / "part.pem", certificate.public_bytes(serialization.Encoding.PEM).decode())
    write_private(folder / "part.key", private.decode())


def _certificate(
    name: str, issuer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _TEN_YEARS)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return key, builder.sign(issuer[0] if issuer else key, hashes.SHA256())
