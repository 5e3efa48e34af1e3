"""What the tests of the service share: wheels, and a machine on which deploy/install has run.

The wheels of what sockpair needs are kept in .cache, by what pyproject.toml asks for; that of
sockpair itself is made anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.systemd.lab import OFFLINE, ROOT, Lab, run_plain, why_not

PYTHON = "/usr/bin/python3"

CONFINED = """
[Service]
Type=oneshot
DynamicUser=yes
SystemCallFilter=@system-service
PrivateTmp=yes
ExecStart=/bin/true
"""


@pytest.fixture(scope="session")
def bootable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip what needs a systemd, where none can be booted, or where it cannot run a service.

    Nothing of ours is in this trial: what it finds is a fault of the place.
    """
    reason = why_not() or _trial(tmp_path_factory.mktemp("empty"))
    if reason is not None:
        pytest.skip(f"no systemd can be booted: {reason}")


def _trial(nothing: Path) -> str | None:
    """Boot a machine and run a confined service; why that failed, or None."""
    try:
        with Lab("trial", nothing) as lab:
            lab.write("/run/systemd/system/trial.service", CONFINED)
            lab.run("systemctl", "start", "trial.service")
    except (AssertionError, OSError) as error:
        return str(error)[-2000:]
    return None


@pytest.fixture(scope="session")
def wheels() -> Path:
    """A folder with the wheels of sockpair and of all it needs, for Debian's own Python."""
    if not Path(PYTHON).exists():
        pytest.skip(f"there is no {PYTHON}")
    stamp = sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()[:16]
    folder = ROOT / ".cache" / f"wheels-{stamp}"
    builder = folder / "builder"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        checked(PYTHON, "-m", "venv", builder)
        pip = (builder / "bin" / "pip", "--quiet", "--disable-pip-version-check")
        checked(*pip, "install", "hatchling>=1.27")
        checked(*pip, "wheel", "--wheel-dir", folder, ROOT)
        (folder / "complete").touch()
    for old in folder.glob("sockpair-*.whl"):
        old.unlink()
    checked(
        *(builder / "bin" / "pip", "--quiet", "--disable-pip-version-check", "wheel"),
        *("--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT),
    )
    return folder


@pytest.fixture(scope="session")
def wheel(wheels: Path) -> str:
    """The wheel of sockpair, as it is called inside a machine."""
    (found,) = wheels.glob("sockpair-*.whl")
    return f"/wheels/{found.name}"


@pytest.fixture(scope="session")
def machine(bootable: None, wheels: Path) -> Iterator[Lab]:
    """A machine that many tests share; each brings it into the state that it needs."""
    with Lab("shared", wheels) as lab:
        yield lab


@pytest.fixture(scope="session")
def reinstall(wheel: str) -> Callable[[Lab], None]:
    """Run deploy/install on a machine, unless it has run there."""

    def run(lab: Lab) -> None:
        if lab.ask("test", "-e", "/opt/sockpair/bin/sockpair").returncode != 0:
            lab.install_story = lab.run("/checkout/deploy/install", wheel, **OFFLINE)

    return run


def checked(*command: str | Path) -> None:
    done = run_plain(*command)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
