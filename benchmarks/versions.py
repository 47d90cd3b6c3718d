"""The oldest and the newest versions that the library says it takes, tried in fresh environments.

``python -m benchmarks.versions --folder DIRECTORY`` makes an environment for each Python that it
finds, installs the oldest versions of ``setup.cfg`` or the newest that pip gives, and runs the
contract and the properties there. What can not be installed is recorded with pip's last line.
The environments take up to 8 GB each, since torch comes with its CUDA libraries; they are removed,
unless ``--kept`` names a folder: there they stay, and are not made again.
"""

import argparse
import configparser
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "versions.json"
NAMES = ("torch", "numpy", "scipy", "scikit-learn", "numba", "jaxtyping")
TOOLS = ("pytest>=8", "hypothesis>=6.80", "pillow", "setuptools")
TESTS = ("tests/test_contract.py", "tests/test_properties.py", "tests/test_memory.py")
LOADED = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def oldest() -> list[str]:
    """The lower bounds of the dependencies, as pins."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"].split()
    return [re.sub(">=", "==", word) + ".*" for word in wanted]


def python(version: str) -> str | None:
    """The interpreter of a version, if there is one."""
    found = shutil.which(f"python{version}")
    for path in (found, *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        if path and _says(path).startswith(version):
            return path
    return None


def _says(path: str) -> str:
    command = [path, "-c", "import platform; print(platform.python_version())"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def run(version: str, which: str, folder: Path, words: str) -> dict[str, Any]:
    """Install and test one combination; what came of it."""
    record: dict[str, Any] = {"python": version, "which": which, "tests": words or "all"}
    interpreter = python(version)
    if interpreter is None:
        return {**record, "result": "no such Python here"}
    home = folder / f"{version}-{which}"
    own = str(home / "bin" / "python")
    if not _has(own):
        error = _install(interpreter, home, oldest() if which == "oldest" else list(NAMES))
        if error:
            return {**record, "result": f"not installed: {error}"}
    versions = subprocess.run(
        [own, "-c", LOADED, *NAMES], capture_output=True, text=True, check=True
    )
    record["versions"] = json.loads(versions.stdout)
    tests = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore",
             "--tb=line", *TESTS, "-k", words]  # fmt: skip
    done = subprocess.run(tests, capture_output=True, text=True, cwd=ROOT, check=False)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
    record["result"] = lines[-1] if lines else "no output"
    record["failed"] = [line[7:200] for line in lines if line.startswith("FAILED ")][:20]
    return record


def _has(own: str) -> bool:
    command = [own, "-c", "import torch, numba, sklearn, jaxtyping, pytest, hypothesis, PIL"]
    return Path(own).is_file() and not subprocess.run(command, check=False).returncode


def _install(interpreter: str, home: Path, packages: list[str]) -> str | None:
    """Make an environment; what pip says last if it can not."""
    subprocess.run([interpreter, "-m", "venv", str(home)], check=True)
    install = [str(home / "bin" / "pip"), "install", "-q", "--no-cache-dir", *packages, *TOOLS]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if not done.returncode:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or ["?"])[-1][:300]


def main(options: list[str] | None = None) -> None:
    """Try the combinations that are asked for, and keep each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", nargs="+", default=["3.10", "3.11", "3.12", "3.13"])
    parser.add_argument("--which", nargs="+", default=["oldest", "newest"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--kept", type=Path, help="where environments stay")
    parser.add_argument("--words", default="", help="only these tests, as pytest's -k")
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args(options)
    for version in given.python:
        for which in given.which:
            with tempfile.TemporaryDirectory(dir=given.folder) as place:
                record = run(version, which, given.kept or Path(place), given.words)
            print(json.dumps(record), flush=True)
            kept = json.loads(given.json.read_text()) if given.json.is_file() else []
            kept = [row for row in kept if (row["python"], row["which"]) != (version, which)]
            rows = sorted([*kept, record], key=lambda row: (row["python"], row["which"]))
            given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
