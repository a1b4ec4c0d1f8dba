"""The dashboard as a part of the application: it begins and ends with it."""

import asyncio

from tests.kit.service import serving


async def test_the_application_ends_while_somebody_looks() -> None:
    async with asyncio.timeout(30):
        async with (
            serving() as service,
            service.session.get(f"{service.url}/dashboard/live") as seen,
        ):
            assert (await seen.content.readline()).startswith(b"event: hello")


async def test_the_past_is_there_for_who_comes_later() -> None:
    async with serving() as service:
        await service.chat(True)
        async with service.session.get(f"{service.url}/dashboard/live") as seen:
            async for line in seen.content:
                if line.startswith(b"data: ") and b'"rows":[[' in line:
                    break
        assert b'"requests":1' in line
