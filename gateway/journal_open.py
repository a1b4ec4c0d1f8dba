"""The journal as the configuration wants it: prices, log lines, and the file if one is named."""

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from gateway.analytics import Conversations
from gateway.config import Config
from gateway.journal import Journal, prices_of
from gateway.journal_file import JournalFile
from gateway.journal_lines import Hasher, Lines, Names
from gateway.request_log import RequestLog
from gateway.router import Router
from gateway.workers.team import Team


def open_journal(
    config: Config,
    conversations: Conversations,
    log_stream: TextIO,
    router: Router,
    team: Team | None,
    *,
    now: Callable[[], float],
) -> Journal:
    """Nothing is opened before there is something to write: a bad path costs no start."""
    server, worker = config.server, team.number if team else None
    log = RequestLog(server.log_level, server.log_format, log_stream, worker=worker)
    file: JournalFile | None = None
    if config.journal.path is not None:
        path = Path(config.journal.path).expanduser()

        def scribe(hasher: Hasher) -> Lines:
            names = Names.of(config, router.models())
            return Lines(hasher, config, config.rules(kv_secret=b""), names, worker=worker)

        file = JournalFile(
            path_of(path, worker),
            scribe,
            key_path=path.with_name(f"{path.name}.key"),
            max_bytes=config.journal.max_bytes,
            files=config.journal.files,
            now=now,
        )
    return Journal(prices_of(config), log, conversations, file)


def path_of(path: Path, worker: int | None) -> Path:
    """Each of several workers has a file of its own: ``kvgate-2.jsonl`` beside ``kvgate-1.jsonl``."""
    return path if worker is None else path.with_name(f"{path.stem}-{worker}{path.suffix}")
