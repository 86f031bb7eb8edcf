"""aiokafka's clients, started and stopped so that nothing of them stays open."""

import asyncio
from contextlib import suppress
from typing import Any

CLOSE_LIMIT_S = 2.0


async def start_client(client: Any) -> None:
    """Start a producer or a consumer; one that fails or is cancelled is closed.

    aiokafka forgets the connection that it began with where its start is cancelled, and Python
    complains of it later. So a start under way is finished first, where that does not take long.
    """
    starting = asyncio.ensure_future(client.start())
    try:
        await asyncio.shield(starting)
    except BaseException:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await asyncio.gather(starting, return_exceptions=True)
        await stop_quietly(client)
        raise


async def stop_quietly(client: Any) -> None:
    """Close a client with nothing left to send; a broker that is away does not hold it."""
    try:
        async with asyncio.timeout(CLOSE_LIMIT_S):
            await client.stop()
    except Exception:
        return
