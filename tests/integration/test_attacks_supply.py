"""What is installed is what was locked, and what is built is what was written (S14, S15)."""

import base64
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "constraints.txt"
PIP = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-cache-dir")


def locked() -> dict[str, list[str]]:
    """Return the hashes of each locked package."""
    found: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=\S)", LOCK.read_text()):
        name = re.match(r"([a-z0-9-]+)==\S+", entry)
        assert name, entry
        found[name[1]] = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry)
    return found


def test_every_package_is_pinned_by_hash() -> None:
    """With its version and SHA-256, from no address; everything that the project names is there."""
    found = locked()
    assert all(found.values()), [name for name, hashes in found.items() if not hashes]
    assert "://" not in LOCK.read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for requirement in named:
        assert re.split(r"[\[><=]", requirement)[0].replace("_", "-").lower() in found
        assert ">=" in requirement, "a floor for each: older ones have known holes"


def test_the_floor_of_the_http_library_is_above_its_known_holes() -> None:
    """3.14.3: no credentials are repeated to another origin; a lock below the floor would not install."""
    assert any(
        line.strip().startswith('"aiohttp>=3.14.3') for line in (ROOT / "pyproject.toml").read_text().splitlines()
    )


def test_the_install_checks_hashes_and_builds_nothing_foreign() -> None:
    """`make install` and `make audit` take hashes or fail; no sources of others are run to build them."""
    makefile = (ROOT / "Makefile").read_text()
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    assert installs
    for line in installs:
        assert "--require-hashes --only-binary :all:" in line or "--no-deps --no-build-isolation --editable ." in line
    assert "pip_audit --strict --require-hashes" in makefile


def _wheel(folder: Path) -> Path:
    """Make a package of nothing."""
    path = folder / "nothing_at_all-1.0-py3-none-any.whl"
    info = "nothing_at_all-1.0.dist-info"
    files = {
        "nothing_at_all.py": b"",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: nothing-at-all\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        for name, data in files.items()
    }
    record = (
        "".join(f"{name},sha256={digests[name]},{len(data)}\n" for name, data in files.items()) + f"{info}/RECORD,,\n"
    )
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in {**files, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(name, data)
    return path


@pytest.mark.parametrize("tampered", [False, True])
def test_a_package_with_another_hash_is_not_installed(tmp_path: Path, tampered: bool) -> None:
    """One changed byte on the way, and the install fails; the same command takes the right one."""
    wheel = _wheel(tmp_path)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "lock.txt").write_text(f"nothing-at-all==1.0 --hash=sha256:{digest}\n")
    if tampered:
        wheel.write_bytes(wheel.read_bytes() + b"\0")
    done = subprocess.run(
        [*PIP, "install", "--no-index", "--find-links", str(tmp_path), "--require-hashes", "--only-binary", ":all:",
         "--target", str(tmp_path / "into"), "-r", str(tmp_path / "lock.txt")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode != 0) is tampered, done.stderr
    assert (tmp_path / "into" / "nothing_at_all.py").exists() is not tampered
    assert ("DO NOT MATCH THE HASHES" in done.stderr) is tampered


def test_the_same_sources_make_the_same_wheel(tmp_path: Path) -> None:
    """Byte for byte: who builds it again can check what was published; it holds the package and nothing else."""
    built = []
    for folder in ("one", "two"):
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / folder)],
            cwd=ROOT, capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        (wheel,) = (tmp_path / folder).glob("*.whl")
        built.append(wheel.read_bytes())
    assert built[0] == built[1]
    with zipfile.ZipFile(wheel) as found:
        tops = {name.split("/")[0] for name in found.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"banana_batch"}
