"""A machine with a real systemd, in namespaces: booted in a second, driven, and thrown away.

It needs root, and a kernel that lets it make namespaces, mount an overlay and make a cgroup. A
container as a rule may not; then the tests are skipped, with the kernel's own words.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.e2e.patience import PATIENCE

ROOT = Path(__file__).parents[2]
BOOT = Path(__file__).with_name("boot")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_CONFIG_FILE": "/dev/null"}
"""There is no network inside."""


def why_not() -> str | None:
    """Why no systemd can be booted here; None if it can."""
    if os.geteuid() != 0:
        return "only root can boot a systemd"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed; as root tests/run installs it"
    if run_plain("/usr/bin/env", "/usr/bin/python3", "-c", "import ensurepip, venv").returncode:
        return "/usr/bin/python3 has no module venv; apt-get install python3-venv"
    try:
        made = make_cgroup("probe")
    except (OSError, LookupError) as error:
        return f"no cgroup can be made here: {error}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            tried = run_plain(
                *("unshare", "--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--cgroup"),
                *("sh", "-ec"),
                "mount --make-rprivate /; mount -t tmpfs x $0; mkdir $0/a $0/b $0/c; "
                "mount -t overlay -o lowerdir=/,upperdir=$0/a,workdir=$0/b x $0/c; "
                "mount -t proc x $0/c/proc; mount -t cgroup2 x $0/c/mnt",
                folder,
            )
    finally:
        made.rmdir()
    return None if tried.returncode == 0 else f"not permitted here: {tried.stderr.strip()}"


def make_cgroup(name: str) -> Path:
    """Make a cgroup (v2) of our own.

    Raises:
        LookupError: no such file system is mounted.
        OSError: it may not be made.

    """
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            made = Path(place) / f"sockpair-test-{os.getpid()}-{name}"
            made.mkdir()
            return made
    raise LookupError("cgroup2 is not mounted")


def run_plain(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30 * PATIENCE,
        check=False,
    )


class Lab:
    """The machine; used as a context manager, at whose end nothing of it is left."""

    def __init__(self, name: str, wheels: Path) -> None:
        self._name = name
        self._wheels = wheels
        self.install_story = ""  # what deploy/install said

    def __enter__(self) -> Lab:
        self._folder = Path(tempfile.mkdtemp(prefix="sockpair-lab-"))
        self._cgroup = make_cgroup(self._name)
        self._console = (self._folder / "console").open("wb")
        machine = self._folder / "machine"
        machine.mkdir()
        self._process = subprocess.Popen(
            [BOOT, machine, self._cgroup, ROOT, self._wheels],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
        )
        try:
            self.until(self._is_up, "the boot")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        init = self._init()
        with suppress(ProcessLookupError):
            os.kill(init or self._process.pid, signal.SIGKILL)  # all others inside go with it
        self._process.wait(PATIENCE)
        self._console.close()
        self._remove_cgroup()
        shutil.rmtree(self._folder)

    def ask(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, to its end, whatever that is."""
        assigned = [f"{key}={value}" for key, value in environment.items()]
        return run_plain(
            *("nsenter", f"--target={self._init()}", "--all", "--root"),
            *("env", "--chdir=/", "-i", f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8", *assigned),
            *command,
        )

    def run(self, *command: str | Path, **environment: str) -> str:
        """Run a command inside that must succeed; what it printed."""
        done = self.ask(*command, **environment)
        assert done.returncode == 0, (
            f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file inside."""
        self.run("mkdir", "-p", str(Path(path).parent))
        self.run("sh", "-c", 'printf %s "$1" >"$0"', path, text)

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={key}", unit).strip()

    def journal(self, unit: str = "sockpair.service") -> str:
        """What a unit has said."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def until_told(self, words: str, unit: str = "sockpair.service") -> None:
        """Wait until a unit has said this; lines are gathered on their way to the journal."""
        self.until(lambda: words in self.journal(unit), f'"{words}" in the journal')

    def start(self, unit: str = "sockpair.service", verb: str = "start") -> None:
        """Start a unit; if it does not, its journal is the message."""
        done = self.ask("systemctl", verb, unit)
        assert done.returncode == 0, done.stderr + self.journal(unit)

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 2 * PATIENCE) -> Any:
        """Look until the condition is true, and return what it returned."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"waited in vain for {what}: {value!r}\n{self.story()}"
            assert self._process.poll() is None, f"the machine is down\n{self.story()}"
            time.sleep(0.02)  # noqa: TID251 - nothing else runs here
        return value

    def story(self) -> str:
        """What the machine said on its console."""
        return (self._folder / "console").read_text(errors="replace")

    def _is_up(self) -> bool:
        if self._init() is None:
            return False
        return self.ask("systemctl", "is-active", "lab.target").stdout == "active\n"

    def _init(self) -> int | None:
        """The systemd's pid, as seen from outside."""
        parent = self._process.pid
        with suppress(FileNotFoundError):
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
                return int(children[0])
        return None

    def _remove_cgroup(self) -> None:
        end = time.monotonic() + PATIENCE
        while self._cgroup.exists() and time.monotonic() < end:
            for folder, _, _ in os.walk(self._cgroup, topdown=False):
                with suppress(OSError):  # EBUSY: who was killed is not gone yet
                    Path(folder).rmdir()
            time.sleep(0.01)  # noqa: TID251 - the same
