"""Passwords in addresses: used, and never shown or recorded. Files that hold secrets: known by their names, and left
where they are."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

# scheme://USER:PASSWORD@HOST. The password may itself hold @ and /, where it is written carelessly: up to the last @
# before a blank, a quote, or the end.
_PASSWORD = re.compile(r"(?P<before>[A-Za-z][\w+.-]*://[^\s/:@'\"]*:)(?P<password>[^\s'\"]+)@")

_QUERY_KEYS = (
    *("password", "sslpassword", "token", "access_token", "api_key", "apikey", "secret", "sig", "signature"),
    *("x-amz-signature", "x-amz-credential", "x-amz-security-token"),
)
_IN_QUERY = re.compile(rf"(?i)(?P<before>[?&](?:{'|'.join(_QUERY_KEYS)})=)[^&\s'\"]+")

_SECRET_FILES = (
    # Passwords for programs.
    *(".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".pypirc", ".npmrc", ".htpasswd"),
    *(".git-credentials", ".vault-token", "auth_token", "kubeconfig", ".dockercfg", ".s3cfg", ".boto", "*.tfvars"),
    *("credentials", "credentials.json", "credentials.y*ml", "credentials.toml", "credentials.ini", "*credentials.csv"),
    *("secret.y*ml", "secrets.y*ml", "secret.json", "secrets.json", "secret.toml", "secrets.toml", "secrets.ini"),
    *("client_secret*.json", "service[-_]account*.json", "passwords.txt", "password.txt", "*accesskeys.csv"),
    # Keys.
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.asc", "*.gpg"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "id_ecdsa_sk", "id_ed25519_sk"),
    # What was typed, passwords with it.
    ".*_history",
)
_PATTERNS = (".env.example", ".env.sample", ".env.template")
_SECRET_FOLDERS = frozenset({".aws", ".azure", ".docker", ".git", ".gnupg", ".kube", ".ray", ".ssh"})


def masked(text: str) -> str:
    """`text` with the password of every address in it, scheme://user:password@host or ?password=, as
    `***`."""
    return _IN_QUERY.sub(r"\g<before>***", _PASSWORD.sub(r"\g<before>***@", text))


def is_secret_file(path: str) -> bool:
    """Whether a file, by its path relative to a working tree, is one that people and programs keep secrets in: .env,
    private keys, all of .ssh, ... Names alone are looked at, in any case of letters."""
    *folders, name = PurePosixPath(path.lower()).parts or ("",)
    if not _SECRET_FOLDERS.isdisjoint(folders):
        return True
    return name not in _PATTERNS and any(fnmatchcase(name, pattern) for pattern in _SECRET_FILES)
