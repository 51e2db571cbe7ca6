"""The work queue: a clock of the test's own, no event loop except where waiting itself is tested."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from onnx_operator.workqueue import Key, WorkQueue


class Hands:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def queue(clock: Hands) -> WorkQueue:
    return WorkQueue(now=clock, jitter=lambda seconds: seconds, base=1.0, cap=60.0)


def key(name: str, namespace: str = "ns") -> Key:
    return Key(namespace, name)


def test_a_key_asked_for_many_times_is_handed_out_once(queue: WorkQueue) -> None:
    for _ in range(5):
        queue.add(key("a"))
    assert [queue.take(), queue.take()] == [key("a"), None]


def test_a_key_being_worked_on_is_not_handed_out_again_until_done(queue: WorkQueue) -> None:
    queue.add(key("a"))
    queue.take()
    queue.add(key("a"))
    assert queue.take() is None
    queue.done(key("a"))
    assert queue.take() == key("a")


def test_a_key_nobody_asked_for_again_stays_away(queue: WorkQueue) -> None:
    queue.add(key("a"))
    queue.take()
    queue.done(key("a"))
    assert queue.take() is None


def test_the_next_look_comes_when_it_is_due(queue: WorkQueue, clock: Hands) -> None:
    queue.add(key("a"))
    queue.take()
    queue.done(key("a"), next_look=30)
    clock.at += 29.9
    assert queue.take() is None
    clock.at += 0.1
    assert queue.take() == key("a")


@pytest.mark.parametrize(("first", "second"), [(30, 10), (10, 30)])
def test_of_two_wishes_the_earlier_wins_and_the_later_lapses(
    queue: WorkQueue, clock: Hands, first: float, second: float
) -> None:
    queue.add_after(key("a"), first)
    queue.add_after(key("a"), second)
    clock.at += 10
    assert queue.take() == key("a")
    queue.done(key("a"))
    clock.at += 1000
    assert queue.take() is None


def test_an_event_comes_before_the_planned_look(queue: WorkQueue) -> None:
    queue.add_after(key("a"), 300)
    queue.add(key("a"))
    assert queue.take() == key("a")


def test_a_look_that_falls_due_during_the_work_happens_after_it(queue: WorkQueue, clock: Hands) -> None:
    queue.add(key("a"))
    queue.take()
    queue.add_after(key("a"), 5)
    clock.at += 6
    assert queue.take() is None
    queue.done(key("a"))
    assert queue.take() == key("a")


def test_failures_wait_longer_and_longer_up_to_the_cap(queue: WorkQueue, clock: Hands) -> None:
    waits = []
    for _ in range(8):
        queue.add_after(key("a"), 0.001)
        clock.at += 1000
        queue.take()
        waits.append(queue.retry(key("a")))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_one_success_forgives_all_failures(queue: WorkQueue, clock: Hands) -> None:
    for _ in range(4):
        queue.add(key("a"))
        clock.at += 1000
        queue.take()
        queue.retry(key("a"))
    clock.at += 1000
    queue.take()
    queue.done(key("a"))
    queue.add(key("a"))
    queue.take()
    assert queue.retry(key("a")) == 1


def test_events_shorten_a_long_wait_but_make_no_hot_loop(queue: WorkQueue, clock: Hands) -> None:
    for _ in range(6):
        queue.add(key("a"))
        clock.at += 1000
        queue.take()
        wait = queue.retry(key("a"))
    assert wait == 32
    queue.add(key("a"))
    clock.at += 0.9
    assert queue.take() is None
    clock.at += 0.1
    assert queue.take() == key("a")


def test_an_event_during_the_failing_work_counts_too(queue: WorkQueue, clock: Hands) -> None:
    for _ in range(6):
        queue.add(key("a"))
        clock.at += 1000
        queue.take()
        queue.add(key("a"))
        assert queue.retry(key("a")) == 1


def test_nothing_hurries_a_key_that_was_told_to_wait(queue: WorkQueue, clock: Hands) -> None:
    queue.add(key("a"))
    queue.take()
    assert queue.retry(key("a"), not_before=20) == 20
    queue.add(key("a"))
    clock.at += 19
    assert queue.take() is None
    clock.at += 1
    assert queue.take() == key("a")


def test_a_conflict_is_looked_at_again_at_once_and_remembered_as_a_failure(queue: WorkQueue) -> None:
    queue.add(key("a"))
    queue.take()
    queue.retry_at_once(key("a"))
    assert queue.take() == key("a")
    assert queue.failures(key("a")) == 1
    assert queue.retry(key("a")) == 2


def test_namespaces_take_turns(queue: WorkQueue) -> None:
    for number in range(1000):
        queue.add(key(f"m{number}", "crowded"))
    queue.add(key("only", "quiet"))
    queue.add(key("x", "third"))
    assert [taken.namespace for _ in range(4) if (taken := queue.take())] == [
        "crowded",
        "quiet",
        "third",
        "crowded",
    ]


def test_within_a_namespace_first_come_is_first_served(queue: WorkQueue) -> None:
    for name in "cab":
        queue.add(key(name))
    assert [queue.take() for _ in range(3)] == [key("c"), key("a"), key("b")]


def test_depth_and_age_tell_of_keys_that_are_due(queue: WorkQueue, clock: Hands) -> None:
    assert (queue.depth, queue.oldest_age) == (0, 0.0)
    queue.add_after(key("later"), 50)
    assert (queue.depth, queue.oldest_age) == (0, 0.0)
    queue.add(key("a"))
    clock.at += 7
    queue.add(key("b"))
    assert (queue.depth, queue.oldest_age) == (2, 7.0)
    clock.at += 53
    assert (queue.depth, queue.oldest_age) == (3, 60.0)


def test_a_key_that_hangs_in_work_counts_as_waiting(queue: WorkQueue, clock: Hands) -> None:
    queue.add(key("a"))
    queue.take()
    clock.at += 400
    assert (queue.depth, queue.oldest_age) == (0, 400.0)
    queue.done(key("a"))
    assert queue.oldest_age == 0.0


def test_a_key_says_since_when_it_was_due(queue: WorkQueue, clock: Hands) -> None:
    queue.add(key("a"))
    clock.at += 3
    queue.take()
    assert queue.waited(key("a")) == 3
    queue.add(key("a"))
    clock.at += 5
    queue.done(key("a"))
    queue.take()
    assert queue.waited(key("a")) == 5, "what was asked for while it was worked on has waited since"


async def test_waiting_ends_when_a_key_is_added() -> None:
    queue = WorkQueue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(key("a"))
    assert await asyncio.wait_for(waiting, 5) == key("a")


async def test_waiting_ends_when_a_key_falls_due() -> None:
    queue = WorkQueue()
    queue.add_after(key("a"), 0.01)
    assert await asyncio.wait_for(queue.get(), 5) == key("a")


async def test_an_earlier_key_wakes_one_who_waits_for_a_later_one() -> None:
    queue = WorkQueue()
    queue.add_after(key("late"), 1000)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add_after(key("soon"), 0.01)
    assert await asyncio.wait_for(waiting, 5) == key("soon")


async def test_closing_sends_everybody_home() -> None:
    queue = WorkQueue()
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.close()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [None, None, None]
    queue.add(key("a"))
    assert await queue.get() is None


async def test_many_workers_never_share_a_key() -> None:
    queue = WorkQueue(base=0.001, cap=0.01)
    at_work: set[Key] = set()
    done: Counter[Key] = Counter()

    async def work() -> None:
        while (taken := await queue.get()) is not None:
            assert taken not in at_work
            at_work.add(taken)
            await asyncio.sleep(0)
            at_work.discard(taken)
            done[taken] += 1
            if done[taken] % 3:
                queue.retry(taken)
            else:
                queue.done(taken)
            if sum(count >= 3 for count in done.values()) == 60:
                queue.close()

    keys = [key(f"m{number}", f"n{number % 5}") for number in range(60)]
    for one in keys:
        queue.add(one)
    await asyncio.wait_for(asyncio.gather(*(work() for _ in range(8))), 30)
    assert set(done) == set(keys)


class QueueMachine(RuleBasedStateMachine):
    """Any order of calls keeps the promises: no key twice at work, none lost, none starved."""

    keys = st.builds(Key, st.sampled_from("xyz"), st.sampled_from("abc"))

    def __init__(self) -> None:
        super().__init__()
        self.clock = Hands()
        self.queue = WorkQueue(now=self.clock, jitter=lambda seconds: seconds)
        self.working: set[Key] = set()
        #: Keys that somebody asked to look at and that were not taken since.
        self.wanted: set[Key] = set()

    @rule(key=keys)
    def add(self, key: Key) -> None:
        self.queue.add(key)
        self.wanted.add(key)

    @rule(key=keys, delay=st.floats(0, 100))
    def add_after(self, key: Key, delay: float) -> None:
        self.queue.add_after(key, delay)
        self.wanted.add(key)

    @rule(seconds=st.floats(0.01, 200))
    def time_passes(self, seconds: float) -> None:
        self.clock.at += seconds

    @rule()
    def take(self) -> None:
        taken = self.queue.take()
        if taken is None:
            return
        assert taken not in self.working
        self.working.add(taken)
        self.wanted.discard(taken)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), how=st.sampled_from(["done", "retry", "retry_at_once", "next_look"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.working.discard(key)
        match how:
            case "done":
                self.queue.done(key)
            case "next_look":
                self.queue.done(key, next_look=10)
                self.wanted.add(key)
            case "retry":
                assert self.queue.retry(key) <= 60
                self.wanted.add(key)
            case _:
                self.queue.retry_at_once(key)
                self.wanted.add(key)

    @invariant()
    def ages_are_sane(self) -> None:
        assert self.queue.oldest_age >= 0
        assert self.queue.depth <= 9

    @override
    def teardown(self) -> None:
        for key in list(self.working):
            self.queue.done(key)
        self.clock.at += 1000
        left = set()
        while (taken := self.queue.take()) is not None:
            self.queue.done(taken)
            left.add(taken)
        assert self.wanted <= left, "a key that was asked for was lost"


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=100, stateful_step_count=40)
