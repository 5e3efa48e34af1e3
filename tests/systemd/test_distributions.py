"""The wheel and the source distribution are complete."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

from tests.systemd.lab import ROOT

DATA = [path for path in (ROOT / "proxy").rglob("*") if path.suffix != ".pyc" and path.is_file()]


def test_the_wheel_has_every_file_of_the_package(wheels: Path) -> None:
    (wheel,) = wheels.glob("sockpair-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    for path in DATA:
        assert str(path.relative_to(ROOT)) in names
    assert "proxy/config/sockpair.schema.json" in names
    assert "proxy/py.typed" in names
    shared = {name.partition(".data/data/")[2] for name in names}
    for board in (ROOT / "grafana" / "dashboards").iterdir():
        assert f"share/sockpair/grafana/dashboards/{board.name}" in shared
    assert "share/sockpair/prometheus/alerts.yml" in shared


def test_the_source_distribution_can_do_all_that_a_checkout_can(
    wheels: Path, tmp_path: Path
) -> None:
    builder = wheels / "builder" / "bin" / "python"
    command = [builder, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120)
    (made,) = tmp_path.glob("sockpair-*.tar.gz")
    with tarfile.open(made) as opened:
        names = {member.name.partition("/")[2] for member in opened.getmembers()}
    for path in (
        *(path.relative_to(ROOT) for path in DATA),
        *(
            "deploy/install",
            "deploy/sockpair.service",
            "deploy/debian/postinst",
            "deploy/manual.py",
            "grafana/dashboards/overview.json",
            "grafana/generate.py",
        ),
        *("config/minimal.toml", "tests/run", "LICENSE", "CHANGELOG.md", "README.md"),
    ):
        assert str(path) in names
