"""The tests of hosts on other releases of transformers: `python -m tests.hosts.versions`, or `make test-versions`.

Each release gets a virtual environment of its own over this one, `.venv-versions/<release>`, which has all else from
here. The oldest is that of pyproject.toml, the newest what the index has
within its bounds; others may be named.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-versions"
NEWEST = "newest"


def bounds() -> str:
    """Those of pyproject.toml, such as ">=5.19,<5.24"."""
    found = re.search(r'"transformers(>=[^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]


def oldest() -> str:
    """The lower bound."""
    return bounds().removeprefix(">=").partition(",")[0]


def environment(release: str) -> Path:
    """Python of an environment with that release, made if there is none yet."""
    folder = FOLDER / release
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if ready.exists() and release != NEWEST:
        return python
    venv.create(folder, with_pip=False, clear=True)
    inside = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(inside, "over.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wanted = ["--upgrade", f"transformers{bounds()}"] if release == NEWEST else [f"transformers=={release}"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
    ready.touch()
    return python


def passes(release: str, arguments: list[str]) -> bool:
    """Run the tests on a release and say so."""
    python = environment(release)
    version = "import transformers; print(transformers.__version__)"
    found = subprocess.run([python, "-c", version], check=True, capture_output=True, text=True).stdout.strip()
    assert release == NEWEST or Version(release) == Version(found), f"{found} stands where {release} was installed"
    print(f"transformers {found}", flush=True)
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, "-m", "pytest", "-q", *arguments], cwd=ROOT, env=settings)
    print(f"transformers {found}: {'passes' if done.returncode == 0 else 'fails'}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", default=[oldest(), NEWEST], help="such as 5.19.0")
    parser.add_argument("--tests", nargs="+", default=["tests/hosts"], help="what pytest is given")
    given = parser.parse_args()
    results = [passes(release, given.tests) for release in given.releases]
    sys.exit(not all(results))
