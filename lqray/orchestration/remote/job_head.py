"""What the first lines of a job's log say: which lqray runs there, on which Python, and where it records."""

from __future__ import annotations

import platform
import re

from lqray.orchestration.code_version import code_version
from lqray.orchestration.provenance import CODE_LINE

_RECORDED = re.compile(r"(?m)^(?P<name>\S+): .+, recorded in (?P<store>\S+)$")
_MOST = 65536
"""Characters of a log's beginning that are looked at."""


class JobHead:
    """Heard as the log comes in. sent: digest of the lqray that was sent for the job, "" where the cluster's own is to
    run, None where nobody knows. stores: where experiments are recorded, by name, as far as that is known already."""

    def __init__(self, sent: str | None, stores: dict[str, str]) -> None:
        self._sent, self.stores = sent, dict(stores)
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
        for recorded in _RECORDED.finditer(lines):
            self.stores.setdefault(recorded["name"], recorded["store"])
        found = None if self._said else CODE_LINE.search(lines)
        if not found:
            return []
        self._said = True
        code, python, remarks = found["code"], found["python"], []
        if self._sent and code != self._sent:
            self.other_code = True
            where = found["place"]
            remarks.append(f"Error: the job runs lqray of code {code}, from {where}, and {self._sent} was sent with it")
        elif self._sent == "" and code != code_version():
            remarks.append(f"it runs the cluster's own lqray, of code {code}; the one here is {code_version()}")
        if python.split(".")[:2] != platform.python_version().split(".")[:2]:
            remarks.append(f"the cluster has Python {python}, and this machine {platform.python_version()}")
        return remarks

    def not_said(self, ended: str) -> str | None:
        """A remark after a log that did not say which lqray ran."""
        if self._said or not self._sent or ended == "FAILED" or not self._text:
            return None
        return "the job's log does not say which lqray ran: an older one, that of the cluster?"
