"""Which Ray a launch joins: what RAY_ADDRESS names, or what `ray start` wrote down and still answers, and no other."""

import ctypes
import os
import signal
import socket
import time

import pytest

from lqray.orchestration.launchers.presence import Presence
from lqray.orchestration.launchers.ray import cluster
from lqray.orchestration.launchers.ray.cluster import ClusterError, cluster_address, ray_cluster
from lqray.orchestration.signals import Interrupted, heeded


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    monkeypatch.setattr(cluster, "_address_files", lambda: [file])
    return file


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_without_an_address_or_a_ray_start_it_is_one_of_our_own(places):
    assert cluster_address() is None


def test_what_ray_start_wrote_down_is_joined(places, listening, monkeypatch):
    places.write_text(listening + "\n")
    assert cluster_address() == listening
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster_address() == listening
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address() == "10.0.0.1:6379"


def test_what_no_longer_answers_is_passed_over_with_a_word(places, listening, caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    places.write_text(f"127.0.0.1:{port}")
    assert cluster_address() is None
    assert f"127.0.0.1:{port}, where nothing answers" in caplog.text


@pytest.mark.parametrize("way", ["file", "link"])
def test_what_another_user_wrote_down_is_passed_over_with_a_word(places, listening, monkeypatch, caplog, way):
    """Joining it would show them this user's code and token."""
    if os.getuid():
        pytest.skip("only root can give a file away")
    if way == "link":
        (places.parent / "elsewhere").write_text(listening)
        places.symlink_to(places.parent / "elsewhere")
    else:
        places.write_text(listening)
    os.chown(places, 12345, 12345, follow_symlinks=False)
    assert cluster_address() is None
    assert "another user (12345)" in caplog.text
    assert str(places) in caplog.text
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ClusterError):
        cluster_address()


def test_auto_insists_but_never_finds_the_ray_of_another_launch(places, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("no Ray is to be looked for by its processes"))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ClusterError, match="RAY_ADDRESS=auto"), ray_cluster({"CPU": 1}, False):
        pass
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ClusterError, match="no Ray runs here"), cluster.running_cluster():
        pass


def test_handlers_of_signals_are_as_before(monkeypatch):
    mine = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with cluster._same_handlers():
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert {number: signal.getsignal(number) for number in mine} == mine


def test_workers_do_not_look_into_the_working_folder_first(tmp_path, monkeypatch):
    config = pytest.importorskip("ray.job_config").JobConfig
    assert config()._py_driver_sys_path == []
    monkeypatch.chdir(tmp_path)
    paths = cluster._job_config()._py_driver_sys_path
    paths.extend(["/somewhere", str(tmp_path)])  # as Ray does
    assert paths == ["/somewhere"]
    (tmp_path / "lqray" / "orchestration").mkdir(parents=True)
    paths.extend([str(tmp_path)])
    assert paths == ["/somewhere", str(tmp_path)]


def test_a_sigterm_while_ray_is_left_is_heard_although_ray_gives_it_back_to_the_system(monkeypatch):
    ray = pytest.importorskip("ray")
    said = []

    def shutdown():
        """As Ray's, which resets below Python what it had installed there."""
        ctypes.CDLL(None).signal(signal.SIGTERM, None)
        time.sleep(0.2)
        signal.raise_signal(signal.SIGTERM)
        said.append("left Ray")

    monkeypatch.setattr(ray, "shutdown", shutdown)
    with pytest.raises(Interrupted), heeded():
        cluster._shut_down()
    assert said == ["left Ray"]


def test_a_ray_that_is_too_slow_to_start_is_tried_again_and_its_end_is_told_in_a_line(places, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    tried = []

    def init(**options):
        tried.append(options["_temp_dir"])
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with (
        pytest.raises(ClusterError, match="Ray did not start on this machine: .* --launcher inline"),
        Presence(tmp_path / "launches") as presence,
        ray_cluster({"CPU": 1}, False, presence=presence),
    ):
        pass
    assert tried == [str(presence.folder)] * 3
    assert not presence.folder.exists()
