"""Folders of one user where all users have theirs, and where anybody may have made one of that name before."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> None:
    """Make the folder, for this user alone, where it is not there. Raises PermissionError where it is somebody else's,
    a link, or others may write to it: what is written there might go anywhere, and what is read be anybody's."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & _OTHERS_WRITE:
        raise PermissionError(
            f"{folder} has to be a folder that only this user writes to, for temporary files of launches; found "
            f"owner {found.st_uid} and mode {stat.filemode(found.st_mode)}: remove it, or set TMPDIR elsewhere"
        )
    if stat.S_IMODE(found.st_mode) != stat.S_IRWXU:
        folder.chmod(stat.S_IRWXU)
