"""Leader election with clocks of the test's own: who leads, who waits, who stops, and that it is never two."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from onnx_operator.adapters.clock import Clock
from onnx_operator.adapters.errors import AlreadyExists, Call, Conflict, Unavailable
from onnx_operator.adapters.lease import LeadershipLost, Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_operator.adapters.kube import Kube, Manifest

CALL = Call("update", "leases", "ns", "lock")


class Enough(Exception):  # noqa: N818
    """The test has seen what it wanted."""


class Server:
    """As much of an API server as one Lease needs: versions, conflicts, and outages."""

    def __init__(self) -> None:
        self.lease: Manifest | None = None
        self.version = 0
        self.is_down = False
        #: Writes that are stored although their answer gets lost.
        self.loses_answers = False

    def write(self, manifest: Manifest) -> Manifest:
        self._answer()
        self.version += 1
        self.lease = copy.deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        if self.loses_answers:
            raise Unavailable(CALL, "connection reset")
        return copy.deepcopy(self.lease)

    async def get(self, *_: object) -> Manifest | None:
        self._answer()
        return copy.deepcopy(self.lease)

    async def create(self, manifest: Manifest) -> Manifest:
        self._answer()
        if self.lease is not None:
            raise AlreadyExists(CALL, "taken")
        return self.write(manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        self._answer()
        assert self.lease is not None
        if manifest["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict(CALL, "modified")
        return self.write(manifest)

    @property
    def holder(self) -> Any:
        assert self.lease is not None
        return self.lease["spec"]["holderIdentity"]

    def _answer(self) -> None:
        if self.is_down:
            raise Unavailable(CALL, "connection refused")


class Time:
    """One process's two clocks: sleeping moves the one that counts, and the test may bend the other."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.wall_offset = timedelta()
        self.on_sleep: Callable[[], None] = lambda: None
        self.sleeps_left = 10_000

    def clock(self) -> Clock:
        start = datetime(2026, 1, 1, tzinfo=UTC)
        return Clock(
            now=lambda: start + timedelta(seconds=self.seconds) + self.wall_offset, monotonic=lambda: self.seconds
        )

    async def sleep(self, seconds: float) -> None:
        self.sleeps_left -= 1
        assert self.sleeps_left, "waits for ever"
        self.seconds += seconds
        self.on_sleep()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def time() -> Time:
    return Time()


def candidate(server: Server, time: Time, identity: str) -> Lease:
    door: Kube = server  # type: ignore[assignment]
    return Lease(door, time.clock(), namespace="ns", name="lock", identity=identity, sleep=time.sleep)


async def test_the_first_to_come_leads_at_once(server: Server, time: Time) -> None:
    one = candidate(server, time, "one")
    assert not one.still_leading()
    await one.acquire()
    assert one.still_leading()
    assert server.holder == "one"
    assert time.seconds == 0


async def test_a_standby_waits_out_a_leader_that_no_longer_renews(server: Server, time: Time) -> None:
    one, two = candidate(server, time, "one"), candidate(server, time, "two")
    await one.acquire()
    await two.acquire()
    assert 15 <= time.seconds < 20
    assert server.holder == "two"
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1
    assert two.still_leading()
    assert not one.still_leading()


async def test_a_leader_that_renews_is_left_alone(server: Server, time: Time) -> None:
    one, two = candidate(server, time, "one"), candidate(server, time, "two")
    await one.acquire()
    for _ in range(60):
        assert not await two._try_to_take()
        await time.sleep(2)
        await one._try_to_renew()
    assert one.still_leading()


async def test_the_leader_stops_before_a_standby_may_start(server: Server, time: Time) -> None:
    one, two = candidate(server, time, "one"), candidate(server, time, "two")
    await one.acquire()
    led_by_one_until = led_by_two_from = None
    while led_by_two_from is None:
        if one.still_leading():
            led_by_one_until = time.seconds
        if await two._try_to_take():
            led_by_two_from = time.seconds
        await time.sleep(0.25)
    assert led_by_one_until is not None
    assert led_by_one_until + 4 < led_by_two_from


async def test_losing_sight_of_the_server_ends_the_leadership_in_time(server: Server, time: Time) -> None:
    one = candidate(server, time, "one")
    await one.acquire()
    server.is_down = True
    with pytest.raises(LeadershipLost, match="not renewed in time"):
        await one.hold()
    assert 10 <= time.seconds <= 12.5


async def test_a_short_outage_ends_nothing(server: Server, time: Time) -> None:
    one = candidate(server, time, "one")
    await one.acquire()

    def outage() -> None:
        server.is_down = 4 <= time.seconds <= 8
        if time.seconds > 100:
            raise Enough

    time.on_sleep = outage
    with pytest.raises(Enough):
        await one.hold()
    assert one.still_leading()


async def test_a_process_that_was_stopped_knows_it_when_it_wakes_up(server: Server, time: Time) -> None:
    one = candidate(server, time, "one")
    await one.acquire()
    time.seconds += 60
    assert not one.still_leading()
    before = copy.deepcopy(server.lease)
    with pytest.raises(LeadershipLost):
        await one.hold()
    assert server.lease == before, "a deposed leader must not renew"


async def test_another_holder_ends_the_leadership_at_once(server: Server, time: Time) -> None:
    one = candidate(server, time, "one")
    await one.acquire()
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "two"
    server.lease["metadata"]["resourceVersion"] = "99"
    with pytest.raises(LeadershipLost, match="held by two"):
        await one.hold()
    assert time.seconds <= 2


async def test_a_renewal_whose_answer_was_lost_is_recognised_as_our_own(server: Server, time: Time) -> None:
    one = candidate(server, time, "one")
    await one.acquire()
    server.loses_answers = True
    await one._try_to_renew()
    server.loses_answers = False
    await time.sleep(2)
    await one._try_to_renew()  # meets the conflict and takes up the newer version
    await time.sleep(2)
    await one._try_to_renew()
    assert one._renewed_at == 4


async def test_an_edit_by_a_person_does_not_depose_the_leader(server: Server, time: Time) -> None:
    one = candidate(server, time, "one")
    await one.acquire()
    assert server.lease is not None
    server.write({**server.lease, "metadata": {**server.lease["metadata"], "labels": {"note": "x"}}})
    await one._try_to_renew()
    await one._try_to_renew()
    assert server.lease["metadata"]["labels"] == {"note": "x"}
    assert one.still_leading()


async def test_a_released_lease_is_free_at_once(server: Server, time: Time) -> None:
    one, two = candidate(server, time, "one"), candidate(server, time, "two")
    await one.acquire()
    await one.release()
    assert not one.still_leading()
    await two.acquire()
    assert time.seconds == 0
    assert server.holder == "two"


async def test_who_no_longer_leads_releases_nothing(server: Server, time: Time) -> None:
    one = candidate(server, time, "one")
    await one.acquire()
    time.seconds += 12
    await one.release()
    assert server.holder == "one"


async def test_a_lease_that_cannot_be_released_runs_out(server: Server, time: Time) -> None:
    one, two = candidate(server, time, "one"), candidate(server, time, "two")
    await one.acquire()
    server.is_down = True
    await one.release()
    server.is_down = False
    await two.acquire()
    assert 15 <= time.seconds < 20


@pytest.mark.parametrize("jump", [timedelta(minutes=10), timedelta(minutes=-10), timedelta(days=365)])
async def test_jumping_wall_clocks_change_nothing(server: Server, time: Time, jump: timedelta) -> None:
    one, two = candidate(server, time, "one"), candidate(server, time, "two")
    await one.acquire()
    time.wall_offset = jump
    assert one.still_leading()
    assert not await two._try_to_take()
    await time.sleep(2)
    await one._try_to_renew()
    assert not await two._try_to_take()
    assert one.still_leading()


async def test_of_two_standbys_one_wins(server: Server, time: Time) -> None:
    standbys = [candidate(server, time, name) for name in ("one", "two")]
    gone = candidate(server, time, "gone")
    await gone.acquire()
    seen = [await standby._try_to_take() for standby in standbys]
    time.seconds += 15
    assert seen == [False, False]
    assert [await standby._try_to_take() for standby in standbys] == [True, False]


async def test_a_process_never_takes_itself_for_its_predecessor(server: Server, time: Time) -> None:
    before = candidate(server, time, "same-name")
    await before.acquire()
    after = candidate(server, time, "same-name")
    assert not await after._try_to_take()
