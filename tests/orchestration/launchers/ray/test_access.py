"""Who may read a Ray token, what Ray Tune is told of the environment, and where a Ray of one's own listens."""

import logging
import os
import stat
import threading

import pytest

from lqray.orchestration.launchers.ray import access as ray_access
from lqray.orchestration.launchers.ray import cluster
from lqray.orchestration.launchers.ray.cluster import ClusterError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_for_its_user_alone_whatever_the_umask(home):
    before = os.umask(0)
    try:
        ray_access.provide_token()
    finally:
        os.umask(before)
    file = home / ".ray/auth_token"
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert len(bytes.fromhex(file.read_text())) == 32
    made = file.read_text()
    ray_access.provide_token()
    assert file.read_text() == made
    assert list(file.parent.iterdir()) == [file]


def test_launches_at_the_same_time_have_one_token_and_never_half_of_it(home):
    start, found = threading.Barrier(8), []

    def make():
        start.wait()
        ray_access.provide_token()
        found.append((home / ".ray/auth_token").read_text())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) == 64


@pytest.mark.parametrize("act", [ray_access.provide_token, ray_access.offer_token])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_token_that_others_could_read_is_closed_to_them_and_said(home, monkeypatch, caplog, act, elsewhere):
    file = home / ("my/token" if elsewhere else ".ray/auth_token")
    if elsewhere:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    file.parent.mkdir()
    file.write_text("of a cluster")
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        act()
        act()
    assert (mode(file), file.read_text()) == (0o600, "of a cluster")
    (said,) = caplog.messages
    assert str(file) in said
    assert "new token" in said


def test_a_token_of_the_environment_makes_no_file(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    ray_access.provide_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray_access.provide_token()
    assert not list(home.iterdir())


def test_a_token_that_cannot_be_kept_is_an_error_that_names_its_file(home):
    (home / ".ray").write_text("a file where a folder should be")
    with pytest.raises(ClusterError) as error:
        cluster._start(home / "folder", 1)
    assert str(home / ".ray/auth_token") in str(error.value)
    assert "RAY_AUTH_TOKEN_PATH" in str(error.value)


def test_tune_is_told_of_no_credential(monkeypatch):
    from ray.tune.execution import class_cache

    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(class_cache.ENV_VARS_TO_PROPAGATE))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    ray_access.withhold_credentials()

    class Trainable:
        pass

    told = class_cache._ActorClassCache().get(Trainable)._default_options["runtime_env"]["env_vars"]
    assert told["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.1"
    assert "planted" not in told.values()


def test_a_ray_of_ones_own_is_on_the_loopback_interface_and_a_joined_one_is_not():
    from ray._private import services

    outside = services.get_node_ip_address()
    with ray_access.loopback_only():
        assert services.get_node_ip_address() == "127.0.0.1"
    assert services.get_node_ip_address() == outside
