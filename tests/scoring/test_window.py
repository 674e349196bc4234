"""Window: blocks wait until there is room, and what is repeated is counted once; without Ray."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from lesioncam.scoring.window import Window


async def waits(entering: "asyncio.Task[None]") -> bool:
    """Whether it is still waiting after everything else has had its turn."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not entering.done()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


def test_blocks_enter_while_there_is_room_and_wait_where_there_is_none() -> None:
    async def story() -> None:
        window = Window(10)
        await window.enter(0, 4)
        await window.enter(4, 6)
        third = asyncio.create_task(window.enter(10, 4))
        assert await waits(third)
        await window.leave(0, 3)
        assert await waits(third)
        await window.leave(3, 1)
        await third

    run(story())


def test_a_block_that_entered_passes_again_and_takes_no_room() -> None:
    async def story() -> None:
        window = Window(4)
        await window.enter(0, 4)
        await window.enter(0, 4)
        await window.leave(0, 4)
        await window.enter(4, 4)

    run(story())


def test_a_waiting_block_that_is_repeated_enters_once() -> None:
    async def story() -> None:
        window = Window(4)
        await window.enter(0, 4)
        both = [asyncio.create_task(window.enter(4, 2)) for _ in range(2)]
        await window.leave(0, 4)
        await asyncio.gather(*both)
        await window.enter(6, 2)
        assert await waits(asyncio.create_task(window.enter(8, 1)))

    run(story())


def test_a_part_that_is_written_twice_makes_room_once() -> None:
    async def story() -> None:
        window = Window(4)
        await window.enter(0, 4)
        await window.leave(0, 2)
        await window.leave(0, 2)
        assert await waits(asyncio.create_task(window.enter(4, 4)))

    run(story())


@pytest.mark.parametrize("images", [64, 1000])
def test_of_many_blocks_no_more_are_under_way_than_may_be(images: int) -> None:
    async def story() -> None:
        window, under_way = Window(images), 0

        async def one(first: int) -> None:
            nonlocal under_way
            await window.enter(first, 32)
            under_way += 32
            assert under_way <= images
            await asyncio.sleep(0)
            under_way -= 32
            await window.leave(first, 32)

        await asyncio.gather(*(one(32 * number) for number in range(100)))

    run(story())
