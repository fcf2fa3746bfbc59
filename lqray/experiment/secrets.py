"""Passwords in addresses: used, and never shown or recorded."""

from __future__ import annotations

import re

# scheme://USER:PASSWORD@HOST. The password may itself hold @ and /, where it is written carelessly: up to the last @
# before a blank, a quote, or the end.
_PASSWORD = re.compile(r"(?P<before>[A-Za-z][\w+.-]*://[^\s/:@'\"]*:)(?P<password>[^\s'\"]+)@")


_IN_QUERY = re.compile(r"(?i)(?P<before>[?&](?:password|sslpassword|token|sig)=)[^&\s'\"]+")


def masked(text: str) -> str:
    """`text` with the password of every address in it, scheme://user:password@host or ?password=, as
    `***`."""
    return _IN_QUERY.sub(r"\g<before>***", _PASSWORD.sub(r"\g<before>***@", text))
