"""The environment variables that child processes get: what they need to run, and no secrets.

A worker runs libraries and models made by others; it has no use for the token of the model hub or for anybody's
password. Only a download gets the token.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_SECRET = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|PASS|CREDENTIALS?|KEYS?|PAT|JWT|BEARER|DSN|WEBHOOK|AUTH)($|_)"
    r"|_PWD$|(TOKEN|SECRET|PASSWORD|PASSWD|APIKEY)$"  # PGPASSWORD, MyToken
)
_WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_WAYS_OUT = re.compile(r"^(PIP|UV)_|PROXY$")
"""Addresses that a child needs whole, to build an environment."""


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable's name says that it holds a secret, or its value is an address with a password in it."""
    if _SECRET.search(name.upper()):
        return True
    return bool(_WITH_PASSWORD.search(value)) and not _WAYS_OUT.search(name.upper())


def without_secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment (or the one given) for a child that needs no secrets.

    The hub's client would also find the token in its own file, so it is told not to look.
    """
    found = os.environ if environment is None else environment
    kept = {name: value for name, value in found.items() if not is_secret(name, value)}
    return {**kept, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
