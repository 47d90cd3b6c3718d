"""All that tries to break the library, and what it counted: ``python -m benchmarks.reliability``.

The same tests as in CI with many more examples, seeds, cycles and settings (``--examples`` times as
many). A part that fails is recorded as it is. Mutants, versions and coverage have modules and
records of their own; ``table`` puts them together for ``docs/reliability.md``.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import timing

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "reliability.json"
PARTS = {
    "contract": ["tests/test_contract.py"],
    "properties": ["tests/test_properties.py"],
    "hostile files": ["tests/test_hostile_files.py"],
    "faults": ["tests/test_faults.py"],
    "soak": ["tests/test_soak.py"],
}
RECORDS = ("kills", "mutants", "versions", "coverage")


def run(part: str, examples: int) -> dict[str, Any]:
    """Run one part in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tally = Path(folder, "tally.json")
        environment = {**os.environ, "MMMLIB_TALLY": str(tally), "MMMLIB_EXAMPLES": str(examples)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
        started = time.monotonic()
        done = subprocess.run(
            [*command, *PARTS[part]], cwd=ROOT, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        counts = json.loads(tally.read_text()) if tally.is_file() else {}
    lines = done.stdout.strip().splitlines()
    found = dict(re.findall(r"(\d+) (passed|failed|skipped)", lines[-1] if lines else ""))
    return {
        "part": part, "examples": examples, "counts": counts,
        "tests": {word: int(number) for number, word in found.items()},
        "failed": [line for line in lines if line.startswith("FAILED ")],
        "seconds": round(time.monotonic() - started),
        "environment": timing.environment(), "commit": timing._git("rev-parse", "--short", "HEAD"),
    }  # fmt: skip


def names() -> dict[str, Any]:
    """How many public names there are, and why some have no case."""
    sys.path.insert(0, str(ROOT / "tests"))
    from contract_cases import CASES, OPTED_OUT  # type: ignore[import-not-found]

    reasons = Counter(reason.partition(":")[0] for reason in OPTED_OUT.values())
    cased = {name.split(" ")[0] for name in CASES}
    return {"names": len(cased) + len(OPTED_OUT), "cased": len(cased), "cases": len(CASES),
            "opted out": len(OPTED_OUT), "reasons": dict(reasons.most_common())}  # fmt: skip


def _load(name: str) -> Any:
    path = RESULTS.with_name(f"{name}.json")
    return json.loads(path.read_text()) if path.is_file() else None


def table() -> str:
    """What was tried, a line each, and what is open."""
    records = {record["part"]: record for record in _recorded()}
    about = names()
    lines = ["| what | tried | result |", "|---|---|---|"]
    lines.append(
        f"| public names | {about['names']} | {about['cased']} with {about['cases']} cases, "
        f"{about['opted out']} opted out |"
    )
    for part in PARTS:
        if part in records:
            lines += _part(records[part])
    lines += [line for name in RECORDS for line in _other(name)]
    reasons = [f"- {count}: {reason}" for reason, count in about["reasons"].items()]
    text = [*lines, "", "Names without a case, by reason:", "", *reasons, ""]
    survivors = (_load("mutants") or {}).get("survivors", [])
    for now, what in (
        ("alive", "Mutants that are alive:"),
        ("equivalent", "Mutants that compute the same, and why:"),
    ):
        found = [_survivor(one) for one in survivors if one.get("now", "alive") == now]
        if found:
            text += [what, "", *found, ""]
    return "\n".join(text)


def _survivor(one: dict[str, Any]) -> str:
    place = f"- `{one['path']}`, `{one['function']}`: {one['change']} in `{one['text']}`"
    return f"{place}: {one['reason']}" if "reason" in one else place


def _recorded() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _load("reliability") or []
    return found


def _part(record: dict[str, Any]) -> list[str]:
    tests = record["tests"]
    result = ", ".join(f"{number:,} {word}" for word, number in tests.items()) or "no tests"
    lines = [f"| **{record['part']}**, {record['examples']} times CI's examples | | {result} |"]
    growth = record["counts"].pop("soak: growth in thousandths", None)
    kinds = sorted(record["counts"].items())
    lines += [f"| {kind} | {number:,} | |" for kind, number in kinds]
    if growth is not None:
        lines.append(f"| soak: growth of the memory after 8 cycles | | {growth / 10:.1f} % |")
    return lines


def _other(name: str) -> list[str]:
    found = _load(name)
    if found is None:
        return []
    if name == "mutants":
        return _mutants(found)
    if name == "coverage":
        return [f"| coverage of {what} | {part['of']:,} | {part['share']:.1%} |"
                for what, part in found["totals"].items()]  # fmt: skip
    if name == "versions":
        return [_combination(row) for row in found]
    dead = [moment for row in found["recipes"] for moment in row["moments"] if moment["killed"]]
    same = sum(not moment["different"] for moment in dead)
    return [f"| kills at random moments | {len(dead)} | {same} went on to the same numbers |"]


def _mutants(found: dict[str, Any]) -> list[str]:
    share = found["killed"] / found["tried"]
    lines = [f"| mutants of {found['possible']:,} possible | {found['tried']} | "
             f"{found['killed']} killed by the tests as they were ({share:.1%}) |"]  # fmt: skip
    if "killed since" in found:
        killed = found["killed"] + found["killed since"]
        different = found["tried"] - found["equivalent"]
        lines.append(
            f"| the same after tests were written for the survivors | {found['tried']} | {killed} "
            f"killed ({killed / found['tried']:.1%}), {found['equivalent']} equivalent: "
            f"{killed / different:.1%} of the others |"
        )
    return lines


def _combination(row: dict[str, Any]) -> str:
    result = "; ".join([row["result"].replace("|", "/"), *row.get("failed", [])])
    some = "" if row.get("tests", "all") == "all" else ", a choice of the tests"
    return (
        f"| Python {row['python']}, {row['which']} versions{some} | {_versions(row)} | {result} |"
    )


def _versions(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {text}" for name, text in row.get("versions", {}).items())


def main(options: list[str] | None = None) -> None:
    """Run the parts, and keep a record of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args(options)
    for part in given.parts:
        record = run(part, given.examples)
        print(part, record["tests"], f"{record['seconds']} s", *record["failed"], flush=True)
        kept = json.loads(given.json.read_text()) if given.json.is_file() else []
        kept = [row for row in kept if row["part"] != part]
        given.json.write_text(json.dumps([*kept, record], indent=1) + "\n")


if __name__ == "__main__":
    main()
