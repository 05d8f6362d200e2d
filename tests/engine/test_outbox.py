"""The outbox: what it holds back, what it does not, and that nothing is lost between two threads."""

import asyncio

from engine.bridge.outbox import Outbox


class Recording:
    """Deliveries, as they come."""

    def __init__(self):
        self.deliveries = []
        self.outbox = Outbox(asyncio.get_running_loop(), self.take, interval=60.0)

    def take(self, items):
        self.deliveries.append(list(items))


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_comes_within_the_interval_waits_unless_it_is_urgent():
    async def main():
        made = Recording()
        made.outbox.put([1], is_urgent=False)
        await settle()
        assert made.deliveries == [[1]], "nothing was delivered lately"
        made.outbox.put([2], is_urgent=False)
        made.outbox.put([3], is_urgent=False)
        await settle()
        assert made.deliveries == [[1]]
        made.outbox.put([4], is_urgent=True)
        await settle()
        assert made.deliveries == [[1], [2, 3, 4]]

    asyncio.run(main())


def test_the_timer_delivers_and_then_stops():
    async def main():
        made = Recording()
        made.outbox._interval = 0.01
        made.outbox.put([1], is_urgent=False)
        await settle()
        made.outbox.put([2], is_urgent=False)
        await asyncio.sleep(0.1)
        assert made.deliveries == [[1], [2]]
        assert made.outbox._timer is None, "an idle server has no timers"

    asyncio.run(main())


def test_nothing_is_lost_or_turned_around_between_two_threads():
    async def main():
        made = Recording()
        made.outbox._interval = 0.0005
        count = 20_000

        def produce():
            for number in range(count):
                assert made.outbox.put([number], is_urgent=number % 1000 == 0)

        await asyncio.to_thread(produce)
        await asyncio.sleep(0.1)
        assert [item for part in made.deliveries for item in part] == list(range(count))

    asyncio.run(main())


def test_a_closed_loop_is_reported():
    async def make():
        return Recording().outbox

    outbox = asyncio.run(make())
    assert not outbox.put([1], is_urgent=False)
    assert not outbox.put([1], is_urgent=True)
