"""Programs that a model writes: how many are right, and that none does anything else while it is found out."""

from __future__ import annotations

import io
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from checkpoints import tiny_decoder, trained_decoder
from onnx_converter import evaluate
from onnx_converter.coding import Problem, Runner, ended, pass_at_k
from onnx_converter.contest import Original
from onnx_converter.progress import Progress
from onnx_converter.spec import Metric, Task
from unit.converter.steps import run
from unit.converter.test_evaluations import CPU, put, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unit.converter.steps import Line


@pytest.mark.parametrize("programs", range(1, 7))
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_one_that_is_right(programs: int) -> None:
    for right, k in itertools.product(range(programs + 1), range(1, programs + 1)):
        chosen = list(itertools.combinations(range(programs), k))
        share = sum(any(one < right for one in each) for each in chosen) / len(chosen)
        assert pass_at_k(programs, right, k) == pytest.approx(share)


def test_a_completion_ends_where_something_else_begins() -> None:
    assert ended("    return 1\n\ndef g():\n#") == "    return 1\n"
    assert ended("    # a\n    if x:\n        print(x)") == "    # a\n    if x:\n        print(x)"


# What runs them -----------------------------------------------------------------------------------------------------

NEXT: Final = Problem(
    prompt="def double(x):\n    return 2 * x\n\ndef after(x):\n",
    test="def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(double(4)) == 9\n",
    entry_point="after",
)
#: Many of the wrong ones would be right, too, if they could do what they do before.
RIGHT: Final = {
    "plain": "    return x + 1",
    "with what Python has": "    import math\n    from typing import List\n    return math.floor(x) + 1",
    "that talks": "    print(x)\n    return x + 1",
}
WRONG: Final = {
    "another answer": "    return x + 2",
    "no Python": "    return x +",
    "no answer": "    pass",
    "an error": "    raise ValueError",
    "an answer that is equal to all": (
        "    class All:\n        def __eq__(self, other): return True\n    return All()"
    ),
    "an end before the test": "    return x + 1\nimport os\nos._exit(0)",
    "a good end before the test": "    return x + 1\nimport sys\nsys.exit(0)",
    "an end in the test": "    import os\n    os._exit(0)",
    "a good end in the test": "    raise SystemExit(0)",
    "a mark on everything that is open": (
        "    import os\n    for number in range(256):\n"
        "        try: os.write(number, b'passed')\n        except OSError: pass\n    os._exit(0)"
    ),
    "a fork": "    import os\n    os.fork()\n    return x + 1",
    "forks of forks": "    import os\n    for _ in range(5): os.fork()\n    return x + 1",
    "a daemon": ("    import os\n    if os.fork(): return x + 1\n    os.setsid()\n    while True: pass"),
    "a thread": "    import threading\n    threading.Thread(target=print).start()\n    return x + 1",
    "another program": "    import subprocess\n    subprocess.run(['true'])\n    return x + 1",
    "the end of its parent": "    import os, signal\n    os.kill(os.getppid(), signal.SIGKILL)\n    return x + 1",
    "the environment": "    open('/proc/self/environ').read()\n    return x + 1",
    "a file": "    open('/etc/hostname').read()\n    return x + 1",
    "a folder": "    import os\n    os.listdir('/')\n    return x + 1",
    "a large file": "    open('/tmp/large', 'wb').write(bytes(1 << 24))\n    return x + 1",
    "the network": "    import socket\n    socket.socket()\n    return x + 1",
    "all memory": "    everything = bytearray(1 << 30)\n    return x + 1",
    "all memory, little by little": "    kept = []\n    while True: kept.append(bytearray(1 << 20))",
    "loops without end": "    while True: pass",
    "loops at once": "    return x + 1\nwhile True: pass",
    "recursion without end": "    return after(x)",
    "an answer without end": "    return 'x' * (1 << 24)",
    "patience": "    import time\n    time.sleep(100)\n    return x + 1",
    "a wait for nothing": "    import os\n    os.read(0, 1)\n    os.read(3, 1)\n    return x + 1",
}


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner.started(seconds=1, deadline=3) as started:
        yield started


def below(process: int) -> list[int]:
    """Processes that it started, or that were started in its session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # State, parent, group and session.
        if process in (int(fields[1]), int(fields[3])) and int(folder.name) != process:
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize("program", RIGHT, ids=lambda name: name.replace(" ", "-"))
def test_a_program_that_is_right_passes(program: str, runner: Runner) -> None:
    assert runner.passes(NEXT, RIGHT[program])


@pytest.mark.parametrize("program", WRONG, ids=lambda name: name.replace(" ", "-"))
def test_a_program_that_does_anything_else_fails_and_leaves_nothing_behind(program: str, runner: Runner) -> None:
    assert not runner.passes(NEXT, WRONG[program])
    assert below(runner.process) == []
    assert not Path("/tmp/large").exists()
    assert runner.passes(NEXT, RIGHT["plain"]), "the next one is not harmed"


FORGIVING = "def check(candidate):\n    try:\n        candidate(1)\n    except BaseException:\n        pass\n"
TESTS: Final[dict[str, tuple[str, str, bool]]] = {
    "an error that is asked for": (
        "def check(candidate):\n    try: candidate(1)\n    except ValueError: return\n    assert False\n",
        "    raise ValueError",
        True,
    ),
    "a program that is gone is not forgiven": (FORGIVING, "    import os\n    os._exit(0)", False),
    "values of all kinds": (
        (
            "def check(candidate):\n    for one in (None, True, -1, 1.5, 'é', b'a', [1, (2,)], {'a': {1, 2}}, set()):\n"
            "        assert candidate(one) == one and type(candidate(one)) is type(one)\n"
        ),
        "    return x",
        True,
    ),
    "a dict that counts": (
        "def check(candidate):\n    assert candidate('aab') == {'a': 2, 'b': 1}\n",
        "    from collections import Counter\n    return Counter(x)",
        True,
    ),
}


@pytest.mark.parametrize("case", TESTS, ids=lambda name: name.replace(" ", "-"))
def test_a_test_hears_what_the_program_says(case: str, runner: Runner) -> None:
    test, program, passes = TESTS[case]
    assert runner.passes(Problem(NEXT.prompt, test, NEXT.entry_point), program) is passes


def test_nothing_runs_on_when_the_runner_is_left() -> None:
    with Runner.started() as started:
        assert started.passes(NEXT, RIGHT["plain"])
    with pytest.raises(ProcessLookupError):
        os.kill(started.process, 0)
    assert below(started.process) == []


# The gate -----------------------------------------------------------------------------------------------------------

LONGEST: Final = 60
NAMES: Final = "abcdefghijklmnopqrst"
PROBLEMS: Final = [
    {
        "task_id": f"own/{name}",
        "prompt": f"def after_{name}(x):\n",
        "entry_point": f"after_{name}",
        "test": "def check(candidate):\n    assert candidate(5) == 6\n",
    }
    for name in NAMES
]


@pytest.fixture(scope="module")
def programmer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows by heart how to count."""
    order = np.random.default_rng(0)
    programs = [
        f"{PROBLEMS[one]['prompt']}    return x + 1\n\n" for _ in range(20) for one in order.permutation(len(PROBLEMS))
    ]
    return trained_decoder(tmp_path_factory.mktemp("programmer") / "model", "".join(programs), steps=100)


def test_a_graph_writes_the_programs_that_the_original_writes_and_they_are_run(programmer: Path, line: Line) -> None:
    folder = line.root / "datasets"
    sampled = {"k": 1, "completions": 2, "temperature": "1"}
    asked = [
        put(folder / "greedy", Metric.PASS_AT_K, PROBLEMS),
        put(folder / "sampled", Metric.PASS_AT_K, PROBLEMS, "0.05") | {"sampling": sampled},
    ]
    digest = line.fetch(programmer).details["digest"]
    spec = {"maxSequenceLength": LONGEST}
    assert line.convert(digest, **spec).summary.reason == "Converted"
    flags = (
        ("--checkpoint", line.checkpoint(digest), "--graph", line.work / "graph", "--provider", CPU),
        ("--spec", json.dumps(spec)),
        ("--evaluations", json.dumps(asked), "--datasets", folder, "--output", line.work / "validation"),
    )
    refused = run("validate", *flags)
    assert refused.summary.reason == "SpecImpossible"
    assert "validation.evaluations[greedy]: passAtK runs programs that the model writes" in refused.summary.message
    greedy, several = run("validate", *flags, ("--run-generated-code",)).details["evaluations"]
    assert float(greedy["original"]) > 0.9
    assert 0.3 < float(several["original"]) < 1, "luck is in it"
    assert (greedy["loss"], greedy["samples"]) == ("0", len(PROBLEMS))


def test_a_model_that_cannot_program_any_more_has_lost_it(programmer: Path, tmp_path: Path) -> None:
    original = Original.load(programmer, Task.AUTO, LONGEST)
    other_folder = tiny_decoder(tmp_path / "other", hidden_size=64, num_attention_heads=4, num_key_value_heads=4)
    other = Original.load(other_folder, Task.AUTO, LONGEST)
    examples = read(tmp_path / "own", Metric.PASS_AT_K, PROBLEMS, original)
    verdict = evaluate.judge([examples], (original.answer, other.answer), Progress("validate", io.StringIO()))
    assert verdict.reason is not None
    assert verdict.reason.name == "QualityLost"
    assert verdict.evaluated[0].compared.graph.value == 0
