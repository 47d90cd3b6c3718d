"""Lines and branches of the primitives that their tests run: ``python -m benchmarks.coverage``.

Python is measured under the tests of the primitives. Kernels are compiled, and no tracer sees into
them: they are measured in a second run with ``NUMBA_DISABLE_JIT=1``, on the small inputs of the
contract and the properties. What several processes share is traced in each of them, in a third run.
All are counted together. ``--keep FOLDER`` keeps which test ran
which line, for ``benchmarks.mutants``; what a folder holds already is not measured again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import timing

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "coverage.json"
PRIMITIVES = (
    "assignment", "clustering", "confidence", "distributed", "evaluation", "losses", "matching",
    "memory", "neighbors", "sampling",
)  # fmt: skip
SMALL = ("tests/test_contract.py", "tests/test_properties.py")
FILES = (*PRIMITIVES, "check", "types", "label_transfer", "transport")
TESTS = tuple(f"tests/test_{name}.py" for name in FILES)
SEVERAL = ("tests/test_distributed.py", "tests/test_sharded_clustering.py")
OMITTED = "mmmlib/reference/*,mmmlib/cli.py,mmmlib/__main__.py,mmmlib/plots/*"
QUIET = ("-q", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore", "--tb=line")


def trace(tests: tuple[str, ...], folder: Path, name: str, *, jit: bool, words: str) -> str:
    """Run some tests under the tracer; pytest's last line."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0" if jit else "1",
                   "COVERAGE_FILE": str(folder / f".coverage.{name}"),
                   "MMMLIB_TIMES": str(folder / f"times.{name}")}  # fmt: skip
    command = [sys.executable, "-m", "coverage", "run", "--branch", "--source", "mmmlib",
               "--omit", OMITTED, "-m", "pytest",
               "-p", "benchmarks.contexts", *QUIET, *tests, "-k", words]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    return (done.stdout.strip().splitlines() or ["no output"])[-1]


def trace_processes(folder: Path) -> str:
    """The tests of several processes, with the tracer in each of them; pytest's last line."""
    config = folder / "processes.rc"
    config.write_text(
        f"[run]\nbranch = true\nsource = mmmlib\nomit = {OMITTED}\nparallel = true\n"
        f"patch = subprocess\ndata_file = {folder / '.coverage.processes'}\n"
    )
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={config}", "-m", "pytest",
               *QUIET, *SEVERAL]  # fmt: skip
    environment = {name: os.environ[name] for name in os.environ if name != "COVERAGE_FILE"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    return (done.stdout.strip().splitlines() or ["no output"])[-1]


def report(folder: Path) -> dict[str, Any]:
    """Both runs together."""
    for words in (["combine", "-q", "--keep", str(folder)], ["json", "-q", "-o", f"{folder}/all"]):
        subprocess.run(
            [sys.executable, "-m", "coverage", *words], cwd=ROOT, check=True,
            env={**os.environ, "COVERAGE_FILE": str(folder / ".coverage")},
        )  # fmt: skip
    found: dict[str, Any] = json.loads((folder / "all").read_text())
    return found


def summary(found: dict[str, Any], runs: dict[str, str]) -> dict[str, Any]:
    """Shares of Python and of kernels, and what is open."""
    files = {
        name: part["summary"] | {"missing": part["missing_lines"]}
        for name, part in found["files"].items()
    }
    totals = {}
    for what, inside in (("Python", False), ("compiled kernels", True)):
        parts = [part for name, part in files.items() if ("_kernels" in name) == inside]
        for kind, done, of in (
            ("lines", "covered_lines", "num_statements"),
            ("branches", "covered_branches", "num_branches"),
        ):
            all_ = sum(part[of] for part in parts)
            share = sum(part[done] for part in parts) / max(all_, 1)
            totals[f"{what}: {kind}"] = {"of": all_, "share": share}
    return {
        "totals": totals, "runs": runs, "environment": timing.environment(),
        "files": {
            name: {"lines": part["covered_lines"] / max(part["num_statements"], 1),
                   "branches": part["covered_branches"] / part["num_branches"]
                   if part["num_branches"] else 1.0,
                   "missing": part["missing"]}
            for name, part in sorted(files.items())
        },
    }  # fmt: skip


def main(options: list[str] | None = None) -> None:
    """Measure, print what is below 95 %, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="a folder for the lines of each test")
    given = parser.parse_args(options)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        spared = "not compile and not processes and not slow and not threads"
        kept = given.keep or folder
        kept.mkdir(parents=True, exist_ok=True)
        if not (kept / "coverage.compiled").is_file():
            words = "not compile and not processes"
            said = trace(TESTS + SMALL, folder, "compiled", jit=True, words=words)
            shutil.copy(folder / "times.compiled", kept / "seconds")
            (kept / "said").write_text(said)
            shutil.copy(folder / ".coverage.compiled", kept / "coverage.compiled")
        shutil.copy(kept / "coverage.compiled", folder / ".coverage.compiled")
        runs = {
            "compiled": (kept / "said").read_text(),
            "not compiled": trace(SMALL, folder, "plain", jit=False, words=spared),
            "several processes": trace_processes(folder),
        }
        found = summary(report(folder), runs)
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    for what, part in found["totals"].items():
        print(f"{what}: {part['share']:.1%} of {part['of']}")
    for name, part in found["files"].items():
        if min(part["lines"], part["branches"]) < 0.95:
            print(f"{name}: {part['lines']:.0%} {part['branches']:.0%} {part['missing']}")


if __name__ == "__main__":
    main()
