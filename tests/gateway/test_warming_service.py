"""Warming as a part of the application: it begins and ends with it."""

import asyncio

from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import Reply, ScriptedUpstream
from tests.kit.service import serving


async def test_the_application_ends_while_jobs_run_and_watchers_watch() -> None:
    gate = Gate()
    async with asyncio.timeout(30):
        async with serving(upstream=ScriptedUpstream(Reply((gate,)))) as service:
            job = await service.send("POST", "/v1/cache/warm", {"questions": ["One?"]})
            await gate.reached()
            path = f"{service.url}/v1/cache/warm/{job.body['id']}"
            async with service.session.get(path, headers={"Accept": "text/event-stream"}) as seen:
                assert await seen.content.readany()
        assert service.upstream.seen[0].gone.is_set()
    assert len(service.gateway.tasks) == 0


async def test_users_and_warming_meet_in_one_traffic() -> None:
    gate = Gate()
    upstream = ScriptedUpstream(Reply((gate,)))
    async with serving(upstream=upstream, warm={"concurrency": 4}) as service:
        user = asyncio.create_task(service.chat())
        await gate.reached()
        questions = [f"{number}" for number in range(8)]
        await service.send("POST", "/v1/cache/warm", {"questions": questions})
        await upstream.called(2)  # one goes beside the user; the others wait for a quiet moment
        assert upstream.calls == 2
        user.cancel()
        await asyncio.gather(user, return_exceptions=True)
