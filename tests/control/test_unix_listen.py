"""The file of a listening Unix socket: its owner and mode, what may be replaced, and its end."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
from pathlib import Path

import pytest

from proxy.config.load import parse
from proxy.config.model import Config
from proxy.config.values import parse_listen
from proxy.control.listen import BindError
from proxy.control.opening import open_house
from proxy.control.unix import SocketFile, UnixListenSocket, bind_unix, remove_stale
from proxy.core.unix import unix_address
from tests.control.binding import bind_listeners

KINDS = {"unix": socket.SOCK_STREAM, "unixgram": socket.SOCK_DGRAM}


def bound(url: str, mode: int = 0o600, **accounts: str) -> UnixListenSocket:
    return bind_unix(parse_listen(url), backlog=8, mode=mode, **accounts)


def config_of(*urls: str, **keys: str) -> Config:
    extra = "".join(f'{name} = "{value}"\n' for name, value in keys.items())
    listeners = "".join(
        f'[listener.l{number}]\nlisten = "{url}"\nupstream = "{url.partition(":")[0]}"\n{extra}'
        for number, url in enumerate(urls)
    )
    return parse(
        f'[admin]\nsocket = ""\nhttp = ""\n{listeners}'
        '[upstream.unix]\nendpoints = ["unix:///o"]\n'
        '[upstream.unixgram]\nendpoints = ["unixgram:///o"]\n',
        "f",
    )


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def accounts() -> tuple[str, str]:
    """A user and a group that this process may give a file to."""
    if os.getuid() == 0:
        user = next(entry for entry in pwd.getpwall() if entry.pw_uid)
        group = next(entry for entry in grp.getgrall() if entry.gr_gid)
        return user.pw_name, group.gr_name
    return pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name


@pytest.mark.parametrize("scheme", KINDS)
def test_owner_group_and_mode_are_as_told(scheme: str, tmp_path: Path) -> None:
    user, group = accounts()
    with bound(f"{scheme}://{tmp_path}/x", 0o620, owner=user, group=group) as listening:
        status = (tmp_path / "x").lstat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o620
        assert status.st_uid == pwd.getpwnam(user).pw_uid
        assert status.st_gid == grp.getgrnam(group).gr_gid
        assert listening.getsockname() == unix_address(f"{tmp_path}/x")


def test_accounts_may_be_numbers(tmp_path: Path) -> None:
    with bound(f"unix://{tmp_path}/x", owner=str(os.getuid()), group=str(os.getgid())):
        assert (tmp_path / "x").lstat().st_uid == os.getuid()


@pytest.mark.parametrize("key", ["owner", "group"])
def test_an_unknown_account_is_named_and_nothing_stays_behind(key: str, tmp_path: Path) -> None:
    config = config_of(f"unix://{tmp_path}/x", **{key: "nobody-of-this-name"})
    kind = {"owner": "user", "group": "group"}[key]
    with pytest.raises(BindError, match=f'there is no {kind} "nobody-of-this-name"'):
        bind_listeners(config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("former", KINDS)
def test_a_file_that_nobody_serves_is_replaced(scheme: str, former: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, KINDS[former]) as dead:
        dead.bind(str(tmp_path / "x"))
    assert (tmp_path / "x").is_socket()
    with bound(f"{scheme}://{tmp_path}/x"):
        assert (tmp_path / "x").is_socket()


@pytest.mark.parametrize("scheme", KINDS)
@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("listens", [True, False])
def test_a_socket_that_somebody_has_is_left_alone(
    scheme: str, other: str, listens: bool, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, KINDS[other]) as live:
        live.bind(str(tmp_path / "x"))
        if listens and other == "unix":
            live.listen(1)
        before = (tmp_path / "x").lstat().st_ino
        with pytest.raises(BindError) as caught:
            bind_listeners(config_of(f"{scheme}://{tmp_path}/x"))
        assert (tmp_path / "x").lstat().st_ino == before
    assert str(caught.value) == (
        f"listener.l0: cannot listen on {scheme}://{tmp_path}/x: Address already in use; "
        'another process serves it; "ss -lxp" tells which'
    )


def test_asking_makes_no_connection(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(tmp_path / "x"))
        live.listen(1)
        live.setblocking(False)
        with pytest.raises(OSError, match="in use"):
            remove_stale(str(tmp_path / "x"))
        with pytest.raises(BlockingIOError):
            live.accept()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("precious")
    with pytest.raises(BindError, match="something else than a socket; remove it, or name another"):
        bind_listeners(config_of(f"unix://{tmp_path}/x"))
    assert (tmp_path / "x").read_text() == "precious"
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with pytest.raises(BindError, match="something else than a socket"):
        bind_listeners(config_of(f"unix://{tmp_path}/link"))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BindError, match=f'"mkdir -p {tmp_path}/none"'):
        bind_listeners(config_of(f"unixgram://{tmp_path}/none/x"))


def test_all_or_none(tmp_path: Path) -> None:
    with pytest.raises(BindError):
        bind_listeners(config_of(f"unix://{tmp_path}/x", f"unix://{tmp_path}/none/x"))
    assert list(tmp_path.iterdir()) == []


def test_an_abstract_name_has_no_file() -> None:
    name = f"sockpair-test-{os.getpid()}"
    with bound(f"unix://@{name}") as listening:
        assert listening.file is None
        assert str(listening.getsockname()) == f"unix:@{name}"
        with pytest.raises(OSError, match="in use") as caught, bound(f"unix://@{name}"):
            pass
        assert caught.value.errno == errno.EADDRINUSE
        with bound(f"unixgram://@{name}"):
            pass


def test_only_our_own_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with bound(f"unix://{path}") as listening:
        file = listening.file
        assert file == SocketFile.at(str(path))
        assert file is not None
        path.rename(tmp_path / "kept")
        path.write_text("somebody else's")
        file.remove()
        assert path.exists()
        path.unlink()
        file.remove()
        (tmp_path / "kept").rename(path)
        file.remove()
        assert not path.exists()


async def test_the_house_removes_its_files(tmp_path: Path) -> None:
    config = config_of(f"unix://{tmp_path}/s", f"unixgram://{tmp_path}/d", "unix://@sockpair-test")
    with await open_house(config) as house:
        assert names_in(tmp_path) == {"s", "d"}
        assert stat.S_IMODE((tmp_path / "s").lstat().st_mode) == 0o660
        house.worker.stop()
    assert names_in(tmp_path) == set()
