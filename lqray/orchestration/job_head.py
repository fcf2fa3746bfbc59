"""What the first lines of a job's log say: which lqray runs there, and where it records."""

from __future__ import annotations

import re

from lqray.orchestration.code_version import code_version
from lqray.orchestration.provenance import CODE_LINE

_RECORDED = re.compile(r"(?m)^.+, recorded in (?P<store>\S+)$")
_MOST = 65536
"""Characters of a log's beginning that are looked at."""


class JobHead:
    """Heard as the log comes in. sent: digest of the lqray that was sent for the job, "" where the cluster's own is to
    run, None where nobody knows. store: where it records, if that is known already."""

    def __init__(self, sent: str | None, store: str | None) -> None:
        self._sent, self.store = sent, store
        self._text = ""
        self._said = False
        self.other_code = False
        """Whether the job runs another lqray than the one that was sent."""

    def heard(self, text: str) -> list[str]:
        """Remarks for whoever follows, on a further piece of the log."""
        if len(self._text) > _MOST:
            return []
        self._text += text
        lines = self._text[: self._text.rfind("\n") + 1]
        if self.store is None and (recorded := _RECORDED.search(lines)):
            self.store = recorded["store"]
        found = None if self._said else CODE_LINE.search(lines)
        if not found:
            return []
        self._said = True
        code, place = found["code"], found["place"]
        if self._sent and code != self._sent:
            self.other_code = True
            return [f"Error: the job runs lqray of code {code}, from {place}, and {self._sent} was sent with it"]
        if self._sent == "" and code != code_version():
            return [f"it runs the cluster's own lqray, of code {code}; the one here is {code_version()}"]
        return []

    def not_said(self, ended: str) -> str | None:
        """A remark after a log that did not say which lqray ran."""
        if self._said or not self._sent or ended == "FAILED":
            return None
        return "the job's log does not say which lqray ran: an older one, that of the cluster?"
