"""The control socket: its directory, its mode, and what is said when it cannot be bound."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from proxy.config.load import parse
from proxy.control.listen import BindError, bind_admin_socket
from proxy.control.opening import open_house


def message(path: Path) -> str:
    with pytest.raises(BindError) as caught:
        bind_admin_socket(str(path))
    return str(caught.value)


def test_its_directory_is_made_when_only_that_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "sockpair"
    before = os.umask(0o022)
    try:
        with bind_admin_socket(str(folder / "admin.sock")):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o750
            assert stat.S_IMODE((folder / "admin.sock").stat().st_mode) == 0o660
    finally:
        os.umask(before)


def test_a_longer_way_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "admin.sock"
    assert f'"mkdir -p {path.parent}" makes its directory' in message(path)
    assert not (tmp_path / "a").exists()


def test_a_socket_that_is_served_names_the_command_that_tells_by_whom(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with bind_admin_socket(str(path)):
        said = message(path)
    assert said.startswith(f"admin.socket: cannot listen on {path}: ")
    assert '"ss -lxp"' in said


@pytest.mark.parametrize(
    ("place", "value", "number", "words"),
    [
        ("admin.socket", "/run/sockpair/a.sock", errno.EACCES, 'let root "mkdir /run/sockpair"'),
        ("admin.socket", "/etc/passwd/a.sock", errno.ENOTDIR, "/etc/passwd is not a directory"),
        ("listener.x", "unix:///run/x/a.sock", errno.ENOENT, '"mkdir -p /run/x"'),
        ("listener.x", "tcp://127.0.0.1:80", errno.EADDRINUSE, '"ss -lntup"'),
        ("listener.x", "tcp://127.0.0.1:80", errno.EACCES, "CAP_NET_BIND_SERVICE"),
    ],
)
def test_remedies_fit_the_kind_of_socket(place: str, value: str, number: int, words: str) -> None:
    assert words in str(BindError(place, value, OSError(number, os.strerror(number))))


def test_its_mode_and_group_are_as_wanted(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with bind_admin_socket(str(path), 0o606, str(os.getgid())):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o606, os.getgid())


def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BindError) as caught:
        bind_admin_socket(str(tmp_path / "admin.sock"), 0o660, "no-such-group")
    assert 'there is no group "no-such-group"' in str(caught.value)


async def test_users_that_are_not_there_are_named(tmp_path: Path) -> None:
    text = f"""
[admin]
socket = "{tmp_path}/admin.sock"
http = ""
users = ["root", "no-such-user"]
[listener.web]
listen = "tcp://127.0.0.1:0"
upstream = "web"
[upstream.web]
endpoints = ["127.0.0.1:9"]
"""
    with pytest.raises(BindError) as caught:
        await open_house(parse(text, "f"))
    said = 'admin.users: cannot admit root, no-such-user: there is no user "no-such-user"'
    assert str(caught.value) == said
    with await open_house(parse(text.replace("no-such-user", "daemon"), "f")) as house:
        assert house.admin_users is not None
        assert house.admin_users >= {0, os.getuid()}
        await house.worker.finish()
