"""Small faults put into the library, one at a time: which of them do the tests notice?

``python -m benchmarks.mutants --number 300`` takes a seeded sample of all places where an operator,
a comparison, a number, a reduction or a check can be changed, in the Python of matching, memory,
clustering and evaluation (compiled kernels are left out: their oracles are the slow versions in
``tests``). Each mutant runs in a fork of a process that has everything loaded, against the tests of
its module, its cases in the contract and the properties, until one fails. With ``--map FOLDER``,
what ``benchmarks.coverage --keep FOLDER`` wrote, only tests that reach the changed line are run,
the quickest first. A survivor is printed as the line that it changed, and recorded.

``python -m benchmarks.mutants --again`` tries the recorded survivors once more, after tests were
written for them, and records beside the first score who is killed now. A survivor that computes the
same for every input is listed in ``benchmarks/equivalent_mutants.json`` with the reason, by hand;
it is tried like any other and counted apart.
"""

import argparse
import ast
import functools
import importlib
import inspect
import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "mutants.json"
EQUIVALENT = Path(__file__).parent / "equivalent_mutants.json"
TESTS = {
    "mmmlib/clustering.py": ("tests/test_clustering.py", "clustering"),
    "mmmlib/evaluation/": ("tests/test_evaluation.py", "evaluation"),
    "mmmlib/memory/": ("tests/test_memory.py", "memory"),
    "mmmlib/matching/_propagation.py": ("tests/test_label_transfer.py", "matching"),
    "mmmlib/matching/_transfer.py": ("tests/test_label_transfer.py", "matching"),
    "mmmlib/matching/_transport.py": ("tests/test_transport.py", "matching"),
    "mmmlib/matching/": ("tests/test_matching.py", "matching"),
}
SHARED = ("tests/test_contract.py", "tests/test_properties.py")
FURTHER = {"tests/test_matching.py": ("tests/test_match_clusters.py",)}
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMED = {
    "any": "all", "all": "any", "min": "max", "max": "min", "amin": "amax", "amax": "amin",
    "argmin": "argmax", "argmax": "argmin", "minimum": "maximum", "maximum": "minimum",
    "sum": "mean", "mean": "sum", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like",
    "ones_like": "zeros_like", "clamp_min": "clamp_max", "floor": "ceil", "ceil": "floor",
}  # fmt: skip


class Mutant(NamedTuple):
    """One change of one line of one function: the number-th of the file."""

    path: str
    line: int
    function: str
    change: str
    number: int


class _Places(ast.NodeVisitor):
    """All changes of a module, as functions of its tree; only inside functions."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.depth = 0  # functions around
        self.found: list[tuple[str, int, str, Any]] = []
        self.number = -1  # of the node in walking order

    def _note(self, node: ast.AST, change: str, edit: Any) -> None:
        if self.depth:
            qualified = ".".join(self.inside)
            self.found.append((qualified, getattr(node, "lineno", 0), change, (node, edit)))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.inside.append(node.name)
        for part in node.body:
            self.visit(part)
        self.inside.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not self.depth:
            self.inside.append(node.name)
        self.depth += 1
        for part in node.body:
            self.visit(part)
        self.depth -= 1
        if not self.depth:
            self.inside.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        name = ast.unparse(node.value).partition("(")[0]
        if isinstance(node.value, ast.Call) and name.rpartition(".")[2] == "warning":
            return
        if isinstance(node.value, ast.Call):
            self._note(node, f"drop {name}(...)", lambda at: _become(at, ast.Constant(None)))
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._note(node, "drop raise", _passed)

    def visit_Compare(self, node: ast.Compare) -> None:
        for i, operator in enumerate(node.ops):
            other = COMPARED[type(operator)]
            self._note(node, f"{type(operator).__name__} -> {other.__name__}",
                       lambda at, i=i, other=other: at.ops.__setitem__(i, other()))  # fmt: skip
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = OPERATED.get(type(node.op))
        if other is not None:
            self._note(node, f"{type(node.op).__name__} -> {other.__name__}",
                       lambda at: setattr(at, "op", other()))  # fmt: skip
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        other = OPERATED.get(type(node.op))
        if other is not None:
            self._note(node, f"{type(node.op).__name__}= -> {other.__name__}=",
                       lambda at: setattr(at, "op", other()))  # fmt: skip
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        self._note(node, f"{type(node.op).__name__} -> {other.__name__}",
                   lambda at: setattr(at, "op", other()))  # fmt: skip
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self._note(node, f"drop {type(node.op).__name__}",
                   lambda at: setattr(at, "op", ast.UAdd()))  # fmt: skip
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._note(node, "swap the branches",
                   lambda at: _swap(at, "body", "orelse"))  # fmt: skip
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            value: Any = not node.value
        elif isinstance(node.value, (int, float)):
            value = node.value + 1
        else:
            return
        self._note(node, f"{node.value} -> {value}", lambda at: setattr(at, "value", value))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in NAMED:
            other = NAMED[node.attr]
            self._note(node, f"{node.attr} -> {other}", lambda at: setattr(at, "attr", other))
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in NAMED and isinstance(node.ctx, ast.Load):
            other = NAMED[node.id]
            self._note(node, f"{node.id} -> {other}", lambda at: setattr(at, "id", other))


def _become(at: Any, value: ast.expr) -> None:
    at.value = value


def _passed(at: Any) -> None:
    at.__class__ = ast.Pass
    at.__dict__.pop("exc", None)
    at.__dict__.pop("cause", None)


def _swap(at: Any, first: str, second: str) -> None:
    one, other = getattr(at, first), getattr(at, second)
    setattr(at, first, other)
    setattr(at, second, one)


def mutants(path: Path) -> list[Mutant]:
    """Every mutant of a file, in order."""
    places = _Places()
    places.visit(ast.parse(path.read_text()))
    name = path.relative_to(ROOT).as_posix()
    return [
        Mutant(name, line, function, change, number)
        for number, (function, line, change, _) in enumerate(places.found)
    ]


def mutated(mutant: Mutant) -> str:
    """The source with the change."""
    tree, places = ast.parse((ROOT / mutant.path).read_text()), _Places()
    places.visit(tree)
    node, edit = places.found[mutant.number][3]
    edit(node)
    return ast.unparse(ast.fix_missing_locations(tree))


def files() -> list[Path]:
    """The modules that are mutated."""
    parts = [ROOT / name for name in TESTS]
    found = {path for part in parts for path in ([part] if part.is_file() else part.glob("*.py"))}
    return sorted(found)


def tests_of(path: str) -> tuple[str, str]:
    """The tests of a module: a file of its own, and its cases in the contract."""
    return next(tests for name, tests in TESTS.items() if path.startswith(name))


def plant(mutant: Mutant) -> None:
    """Give the function that is loaded the code of the mutant."""
    name = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    holder: Any = importlib.import_module(name)
    for word in mutant.function.split("."):
        holder = inspect.getattr_static(holder, word)
        holder = getattr(holder, "__func__", holder)
        if isinstance(holder, property):
            holder = holder.fget
    function = inspect.unwrap(holder)
    if not isinstance(function, FunctionType):
        raise TypeError(f"{mutant.function} must be a function, got {function!r}")
    code = _code(compile(mutated(mutant), mutant.path, "exec"), mutant.function.split("."))
    function.__code__ = code


def _code(code: CodeType, words: list[str]) -> CodeType:
    for word in words:
        code = [
            part for part in code.co_consts if isinstance(part, CodeType) and part.co_name == word
        ][-1]
    return code


SPARED = "not slow and not compile and not processes and not threads"


class Map(NamedTuple):
    """Which tests reach a line, and the seconds that each takes."""

    lines: Callable[[str, int], set[str]]
    known: set[str]
    seconds: dict[str, float]


def read_map(folder: Path | None) -> Map:
    """What ``benchmarks.coverage --keep`` wrote; without a folder nothing is known."""
    if folder is None:
        return Map(lambda path, line: set(), set(), {})
    import coverage

    data = coverage.CoverageData(str(folder / "coverage.compiled"))
    data.read()
    full = {
        path: name
        for name in data.measured_files()
        for path in map(str, files())
        if name.endswith(path.removeprefix(str(ROOT)))
    }

    @functools.cache
    def contexts(path: str) -> dict[int, list[str]]:
        return data.contexts_by_lineno(full[str(ROOT / path)])

    seconds: dict[str, float] = json.loads((folder / "seconds").read_text())
    return Map(lambda path, line: set(contexts(path).get(line, ())), set(seconds), seconds)


class Runner:
    """Collects all tests once; then each mutant runs its own in a fork."""

    def __init__(self, work: Callable[["Runner"], None], reach: Map, limit: float) -> None:
        self.work, self.reach, self.limit = work, reach, limit
        self.items: list[Any] = []

    def pytest_runtestloop(self, session: Any) -> bool:
        """Do the work in the place of running the tests."""
        from contract_cases import CASES  # type: ignore[import-not-found]

        for case in CASES.values():
            case.run(case.tensors())
        import sklearn.cluster
        import sklearn.metrics  # noqa: F401

        self.items = session.items
        self.work(self)
        return True

    def tests_of(self, mutant: Mutant, line: int, limit: float) -> list[Any]:
        """The tests that may notice, the quickest first, as many as fit into some seconds.

        A test that the map does not know is run. ``line`` is that of the mutant in the map.
        """
        own, word = tests_of(mutant.path)
        files_ = (own, *FURTHER.get(own, ()))
        reached = self.reach.lines(mutant.path, line)
        chosen = []
        for item in self.items:
            file, name = item.nodeid.split("::", 1)
            mine = file in files_ or (file in SHARED and ("properties" in file or word in name))
            if mine and (item.nodeid in reached or item.nodeid not in self.reach.known):
                chosen.append(item)
        chosen.sort(key=lambda item: self.reach.seconds.get(item.nodeid, 0.0))
        total, kept = 0.0, []
        for item in chosen:
            total += self.reach.seconds.get(item.nodeid, 0.0)
            if total <= limit:
                kept.append(item)
        return kept

    def survives(self, mutant: Mutant, line: int) -> bool:
        """Whether all tests of a mutant pass."""
        items = self.tests_of(mutant, line, self.limit)

        def work() -> bool:
            plant(mutant)
            return _pass(items)

        return passes_in_fork(work, round(60 + 4 * self.limit))

    def check(self, sample: list[Mutant]) -> None:
        """Tests that fail without a mutant would kill every one."""
        for path in sorted({mutant.path for mutant in sample}):
            first = next(mutant for mutant in sample if mutant.path == path)
            items = self.tests_of(first, first.line, self.limit / 10)
            if not passes_in_fork(functools.partial(_pass, items), 600):
                raise RuntimeError(f"the tests of {path} must pass without a mutant")


def _pass(items: list[Any]) -> bool:
    from _pytest.runner import runtestprotocol

    for item, following in zip(items, [*items[1:], None], strict=True):
        if any(part.failed for part in runtestprotocol(item, log=False, nextitem=following)):
            return False
    return True


def passes_in_fork(work: Callable[[], bool], limit: int) -> bool:
    """Whether some work in a fork says yes within some seconds of the CPU."""
    started, child = time.monotonic(), os.fork()
    if child == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            code = 0 if work() else 1
        finally:
            os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() - started > 20 * limit:  # waits for something
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.02)


def with_tests(work: Callable[[Runner], None], reach: Map, limit: float) -> None:
    """Load all that the tests load, in this process, without a second thread; then work."""
    import pytest
    import torch

    torch.set_num_threads(1)
    own = {name for name, _ in TESTS.values()} | {name for two in FURTHER.values() for name in two}
    call = ["-qq", "-p", "no:cacheprovider", "-k", SPARED, *sorted(own), *SHARED]
    code = pytest.main(call, plugins=[Runner(work, reach, limit)])
    if code != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests must be collected, got {code!r}")


class Tried(NamedTuple):
    """A mutant and what became of it."""

    mutant: Mutant
    alive: bool


def run(
    runner: Runner, number: int, seed: int, keep: Callable[[dict[str, Any]], None],
    before: dict[str, Any],
) -> None:  # fmt: skip
    """Try a sample of the mutants."""
    everything = [mutant for path in files() for mutant in mutants(path)]
    sample = random.Random(seed).sample(everything, min(number, len(everything)))
    found = [Tried(*pair) for pair in zip(sample, before.get("alive", []), strict=False)]
    runner.check(sample)
    for mutant in sample[len(found) :]:
        found.append(Tried(mutant, runner.survives(mutant, mutant.line)))
        if found[-1].alive:
            print(f"{len(found)}/{len(sample)} survives: {_told(mutant)}", flush=True)
        elif len(found) % 20 == 0:
            print(f"{len(found)}/{len(sample)}", flush=True)
        keep(record(found, len(everything), number, seed))


def record(found: list[Tried], possible: int, wanted: int, seed: int) -> dict[str, Any]:
    """What is written: counts, by module, and who survived."""
    modules = {
        path: {"tried": len(own), "killed": sum(not one.alive for one in own)}
        for path in sorted({one.mutant.path for one in found})
        if (own := [one for one in found if one.mutant.path == path])
    }
    return {
        "possible": possible, "wanted": wanted, "tried": len(found), "seed": seed,
        "killed": sum(not one.alive for one in found),
        "modules": modules,
        "survivors": [
            {"path": one.mutant.path, "line": one.mutant.line, "function": one.mutant.function,
             "change": one.mutant.change, "text": _text(one.mutant)}
            for one in found if one.alive
        ],
        "alive": [one.alive for one in found],
    }  # fmt: skip


def _text(mutant: Mutant) -> str:
    return (ROOT / mutant.path).read_text().splitlines()[mutant.line - 1].strip()


def _told(mutant: Mutant) -> str:
    return f"{mutant.path}:{mutant.line} {mutant.change}: {_text(mutant)}"


def same_place(survivor: dict[str, Any]) -> list[Mutant]:
    """The mutants of a recorded survivor, wherever its line has moved to in its function."""
    words = [survivor[name] for name in ("function", "change", "text")]
    found = [
        mutant
        for mutant in mutants(ROOT / survivor["path"])
        if [mutant.function, mutant.change, _text(mutant)] == words
    ]
    nearest = min((abs(one.line - survivor["line"]) for one in found), default=0)
    return [one for one in found if abs(one.line - survivor["line"]) == nearest]


def reason(survivor: dict[str, Any]) -> str | None:
    """Why a survivor is equivalent, if somebody has found out."""
    names = ("path", "function", "change", "text")
    for one in json.loads(EQUIVALENT.read_text()):
        if all(one[name] == survivor[name] for name in names):
            return str(one["reason"])
    return None


def again(runner: Runner, recorded: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
    """Try the survivors of a record with all tests, and note who is alive now."""
    for survivor in recorded["survivors"]:
        if survivor.get("now") in ("killed", "equivalent"):
            continue
        own = same_place(survivor)
        if not own:
            raise LookupError(
                f"survivors must be in the code, got {survivor}: run the sample again"
            )
        alive = any(runner.survives(mutant, survivor["line"]) for mutant in own)
        why = reason(survivor)
        survivor["now"] = "killed" if not alive else "alive" if why is None else "equivalent"
        if alive and why is not None:
            survivor["reason"] = why
        print(f"{survivor['now']}: {_told(own[0])}", flush=True)
        words = [one.get("now") for one in recorded["survivors"]]
        recorded["killed since"] = words.count("killed")
        recorded["equivalent"] = words.count("equivalent")
        keep(recorded)


def main(options: list[str] | None = None) -> None:
    """Try a sample, or single mutants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of tests for each mutant")
    parser.add_argument("--map", type=Path, help="of benchmarks.coverage --keep")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--go-on", action="store_true", help="after the last one of the record")
    parser.add_argument("--again", action="store_true", help="only the recorded survivors")
    given = parser.parse_args(options)
    os.chdir(ROOT)

    def keep(found: dict[str, Any]) -> None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")

    def work(runner: Runner) -> None:
        before = json.loads(given.json.read_text()) if given.again or given.go_on else {}
        if given.again:
            again(runner, before, keep)
        else:
            run(runner, given.number, given.seed, keep, before)

    with_tests(work, read_map(given.map), given.seconds)


if __name__ == "__main__":
    main()
