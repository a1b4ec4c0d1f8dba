"""``kvgate explain request.json``: what would happen to this call, and why, without sending it.

With a running gateway everything is told: the plan, what is stored, what the engine knows, who would
be asked. ``--offline`` reads a configuration and tells the plan alone.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gateway.cli_inspect import span
from gateway.cli_remote import (
    DEFAULT_URL,
    ApiKey,
    CannotAskError,
    Remote,
    Url,
    one_line,
    plain,
)

EXPLAIN: Final = "/v1/cache/explain"
_VERDICTS: Final = {
    "hit": "answered from the store",
    "partial": "answered from the store in part; the other inputs are computed",
    "stale": "answered from the store with a stale answer, which is computed anew meanwhile",
    "negative": "answered with a refusal that is remembered",
    "joins": "reads along with the same call, which is being computed",
    "computes": "computed",
    "refused": "refused (504): it wants a stored answer only, and there is none",
}
_REASONS: Final = {
    "cold": "nothing like it was stored, as far as is remembered",
    "expired": "what was stored is too old",
    "evicted": "it was stored, and made room for others",
    "invalidated": "it was stored, and cleared",
    "fingerprint": "what is stored under the name answers another request",
    "scope": "it is stored for others than those this call shares with",
    "disabled": "the call does not use the store",
    "too_short": "the conversation is too short for its strategy",
    "no_cache": "the call does not want a stored answer",
    "no_store": "the call wants nothing stored",
    "ttl_0": "its time to live is 0",
    "stream": "its stream is not to be cached",
    "stateful": "the answer depends on what the backend remembers",
}
Told = Mapping[str, Any]


def explain(
    request: Annotated[str, typer.Argument(help="A file with the request's body; -: stdin.")],
    *,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help="As the call would carry: 'X-Cache-TTL: 60'."),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="chat, completions, embeddings, responses; else guessed.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="The plan alone, from a configuration.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", envvar="KVGATE_CONFIG", help="For --offline."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="For --offline: who asks.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What would happen to this call, and why, without sending it."""
    with one_line():
        headers, body = read_headers(header or []), read_body(request)
        if offline:
            from gateway.explaining_offline import explain_offline

            told: Told = explain_offline(
                body, headers, config, endpoint=endpoint, tenant=tenant, environ=os.environ
            )
        else:
            told = _asked(Remote(url.rstrip("/"), api_key), body, headers, endpoint)
    if as_json:
        typer.echo(json.dumps(told, indent=2, ensure_ascii=True))
        return
    for line in lines(told):
        typer.echo(plain(line))


def _asked(
    remote: Remote, body: bytes, headers: Sequence[tuple[str, str]], endpoint: str | None
) -> Told:
    path = EXPLAIN
    if endpoint is not None:
        from urllib.parse import quote

        path += f"?endpoint={quote(endpoint)}"
    told: Told = remote.ask("POST", path, body, headers=dict(headers))
    return told


def read_body(name: str) -> bytes:
    """A file's bytes, or those of stdin. Raises: CannotAskError."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise CannotAskError(f"{name}: {error.strerror}") from None


def read_headers(given: Sequence[str]) -> list[tuple[str, str]]:
    """``Name: value`` each. Raises: CannotAskError."""
    headers = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip() or not text.isascii() or not text.isprintable():
            raise CannotAskError(f"-H {plain(text)!r}: must be a name, a colon and a value")
        headers.append((name.strip(), value.strip()))
    return headers


def lines(told: Told) -> Iterator[str]:
    """The explanation for people."""
    if (verdict := told.get("verdict")) is not None:
        yield f"would be   {_VERDICTS.get(verdict, verdict)}{_by(told, verdict)}"
    if (response := told.get("response")) is not None:
        yield from _of_response(response)
    if (inputs := told.get("inputs")) is not None:
        states = ", ".join(f"{count} {state}" for state, count in inputs["states"].items())
        yield f"inputs     {inputs['different']} different: {states}"
    yield from _of_plan(told)
    if (known := told.get("kv")) is not None:
        yield (
            f"KV         {known['backend']} would reuse {known['hit_tokens']:,} of the prompt's "
            f"{known['tokens']:,} tokens{_tiers(known)}"
        )
        if (missed := known.get("missed")) is not None:
            yield f"           no more: {_missed(missed)}"
    places = told.get("backends") or ()
    for number, place in enumerate(places):
        head = "backend" if number == 0 else "  then"
        yield f"{head:<10} {place['backend']} ({place['state']}), model {place['model']}"


def _tiers(known: Told) -> str:
    held = {tier: count for tier, count in (known.get("tiers") or {}).items() if count}
    return f" ({', '.join(f'{tier} {count:,}' for tier, count in held.items())})" if held else ""


def _missed(missed: Told) -> str:
    """Why a prompt's KV is not there, or not all of it, as the engine says it."""
    text = f"{missed['reason']} from token {missed['at_token']:,} on"
    if missed.get("cause") is not None and missed.get("ago_s") is not None:
        text += f" ({missed['cause']}, {span(missed['ago_s'])} ago)"
    return text


def _by(told: Told, verdict: str) -> str:
    places = told.get("backends") or ()
    return f" by {places[0]['backend']}" if verdict == "computes" and places else ""


def _of_response(response: Told) -> Iterator[str]:
    reason = response["miss_reason"]
    if response["served"]:
        age, left_s = span(response["age_s"]), response["ttl_left_s"]
        until = f"{span(left_s)} left" if left_s > 0 else f"expired {span(-left_s)} ago"
        yield f"stored     {response['tier']}, {age} old, {until}, {response['tokens']:,} tokens"
    elif reason is not None:
        yield f"because    {reason}: {_REASONS.get(reason, 'see the plan')}"
    if (different := response["difference"]) is not None:
        at = f", character {different['character']}" if "character" in different else ""
        yield f"differs    first in {different['field']}{at}"


def _of_plan(told: Told) -> Iterator[str]:
    plan = told["plan"]
    rights = (
        f"{'reads' if plan['read'] else 'reads not'}, {'stores' if plan['store'] else 'stores not'}"
    )
    yield f"plan       {told['endpoint']}, model {told['model']}, key {plan['key']}"
    yield (
        f"           {rights}; tier {plan['tier']}, ttl {plan['ttl_s']:g} s, "
        f"priority {plan['priority']}, lane {plan['lane']}"
    )
    for reason in plan["reasons"]:
        yield f"           {reason['field']:<10} {reason['value']:<12} {reason['because']}"
    if plan["unknown"]:
        yield f"unknown    {', '.join(plan['unknown'])}"
