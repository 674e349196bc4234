"""Window: blocks wait until there is room, and a repeated one counts once; without Ray."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from lesioncam.scoring.window import Window


async def waits(acquiring: "asyncio.Task[None]") -> bool:
    """Whether it still waits after all other tasks had a chance to run."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not acquiring.done()


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 10))


def test_blocks_wait_while_the_window_is_full() -> None:
    async def steps() -> None:
        window = Window(10)
        await window.acquire(0, 4)
        await window.acquire(4, 6)
        third = asyncio.create_task(window.acquire(10, 4))
        assert await waits(third)
        await window.release(0, 3)
        assert await waits(third)
        await window.release(3, 1)
        await third

    run(steps())


def test_a_repeated_block_is_counted_once() -> None:
    async def steps() -> None:
        window = Window(4)
        await window.acquire(0, 4)
        await window.acquire(0, 4)
        await window.release(0, 4)
        await window.acquire(4, 4)

    run(steps())


def test_a_repeated_block_that_waits_is_counted_once() -> None:
    async def steps() -> None:
        window = Window(4)
        await window.acquire(0, 4)
        both = [asyncio.create_task(window.acquire(4, 2)) for _ in range(2)]
        await window.release(0, 4)
        await asyncio.gather(*both)
        await window.acquire(6, 2)
        assert await waits(asyncio.create_task(window.acquire(8, 1)))

    run(steps())


def test_a_part_written_twice_is_released_once() -> None:
    async def steps() -> None:
        window = Window(4)
        await window.acquire(0, 4)
        await window.release(0, 2)
        await window.release(0, 2)
        assert await waits(asyncio.create_task(window.acquire(4, 4)))

    run(steps())


@pytest.mark.parametrize("images", [64, 1000])
def test_many_blocks_never_exceed_the_window(images: int) -> None:
    async def steps() -> None:
        window, in_progress = Window(images), 0

        async def one(first: int) -> None:
            nonlocal in_progress
            await window.acquire(first, 32)
            in_progress += 32
            assert in_progress <= images
            await asyncio.sleep(0)
            in_progress -= 32
            await window.release(first, 32)

        await asyncio.gather(*(one(32 * number) for number in range(100)))

    run(steps())


def test_classified_images_are_counted() -> None:
    async def steps() -> None:
        window = Window(4)
        await window.count(3)
        await window.count(4)
        assert await window.classified() == 7

    run(steps())
