"""Folders for temporary files whose names others can guess."""

import os
import stat

import pytest

from lqray.orchestration.private_folder import make_private
from lqray.orchestration.worker import logs as rank_logs


def test_it_is_made_for_its_user_alone_and_closed_where_others_could_read(tmp_path):
    folder = tmp_path / "mine"
    for mode in (None, 0o755, 0o700):
        if mode is not None:
            folder.chmod(mode)
        make_private(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "open to all", "another user's"])
def test_what_somebody_else_may_have_made_is_refused(tmp_path, kind):
    folder, elsewhere = tmp_path / "guessed", tmp_path / "elsewhere"
    if kind.endswith("link"):
        if kind == "link":
            elsewhere.mkdir()
        folder.symlink_to(elsewhere)
    elif kind == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777)
        if kind == "another user's":
            if os.getuid():
                pytest.skip("only root can give a folder away")
            folder.chmod(0o755)
            os.chown(folder, 12345, 12345)
    with pytest.raises(PermissionError, match=r"guessed has to be a folder that only this user writes to"):
        make_private(folder)


def test_a_log_on_its_way_to_an_object_store_goes_to_no_folder_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_logs, "cached_root", lambda: tmp_path / "logs")
    monkeypatch.setattr(rank_logs, "open_folder", lambda address: object())
    (tmp_path / "trap").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "trap")

    class Task:
        folder = "s3://bucket/trial"

    with pytest.raises(PermissionError), rank_logs.output_to_log(Task(), 0):
        pass
    assert not list((tmp_path / "trap").iterdir())
