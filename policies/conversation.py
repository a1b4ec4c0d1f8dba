"""What a conversation is about, and how much of it is likely to be wanted again.

The class is a matter of words and shape, without a model: the rules are short, the same text always
has the same class, and everybody can say why. They read what the user said; what the assistant or
a system prompt says ("How can I help?") is looked at only when no user said anything.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["programming", "educational", "support", "general"]

READ_CHARACTERS: Final = 4096
"""The latest text that is read: enough to know, and a long conversation costs no more."""

CONTEXT_OF: Final[Mapping[Kind, str]] = {
    "programming": "code_review",
    "educational": "documentation",
    "support": "technical_support",
    "general": "casual_chat",
}
"""The context profile whose ttl a class of conversation gets under ``strategy: adaptive``."""

# The first class of which a sign is found is it. Whole words; forms are written out.
_SIGNS: Final[tuple[tuple[Kind, frozenset[str]], ...]] = (
    (
        "programming",
        frozenset(
            [
                "code",
                "codes",
                "coding",
                "function",
                "functions",
                "class",
                "classes",
                "import",
                "imports",
                "script",
                "scripts",
                "debug",
                "debugging",
                "refactor",
                "compile",
                "compiler",
                "algorithm",
                "def",
                "traceback",
                "代码",
                "函数",
                "编程",
            ]
        ),
    ),
    (
        "educational",
        frozenset(
            [
                "explain",
                "explains",
                "explained",
                "what is",
                "what are",
                "what's",
                "how does",
                "how do",
                "why does",
                "why do",
                "teach",
                "define",
                "解释",
                "什么是",
                "如何",
                "为什么",
            ]
        ),
    ),
    (
        "support",
        frozenset(
            [
                "help",
                "problem",
                "problems",
                "error",
                "errors",
                "issue",
                "issues",
                "broken",
                "doesn't work",
                "not working",
                "fails",
                "crash",
                "crashes",
                "帮助",
                "帮我",
                "问题",
                "错误",
                "报错",
            ]
        ),
    ),
)
_FENCE: Final = "```"
_WORD: Final = re.compile(r"[\w']+")


@dataclass(frozen=True, slots=True)
class Shape:
    """A conversation as of one request: counts and shares, nothing of what was said.

    ``mean_characters`` is the mean length of its messages, ``repetition`` the share of its
    different words that occur more than once.
    """

    messages: int
    mean_characters: float
    kind: Kind
    repetition: float

    @property
    def reuse_potential(self) -> float:
        """From 0 to 1: 0.6 x min(messages / 10, 1) + 0.4 x repetition."""
        return 0.6 * min(self.messages / 10, 1.0) + 0.4 * self.repetition


def shape_of(messages: Sequence[Mapping[str, Any]]) -> Shape:
    """The shape of a conversation; of one without messages, an empty one."""
    lengths = [sum(map(len, _texts(message))) for message in messages]
    return Shape(
        messages=len(messages),
        mean_characters=sum(lengths) / len(lengths) if lengths else 0.0,
        kind=classify(messages),
        repetition=_repetition(_latest(messages)),
    )


def classify(messages: Sequence[Mapping[str, Any]]) -> Kind:
    """``programming``, ``educational``, ``support`` or else ``general``: the first with a sign.

    A code fence is a sign of programming; the words are in ``_SIGNS``. Scripts that put no
    spaces between words are searched for theirs as they stand.
    """
    said = _latest(message for message in messages if message.get("role") == "user")
    text = (said or _latest(messages)).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if _FENCE in text:
        return "programming"
    words = f" {' '.join(_WORD.findall(text))} "
    for kind, signs in _SIGNS:
        if any((f" {sign} " if sign.isascii() else sign) in words for sign in signs):
            return kind
    return "general"


def _repetition(text: str) -> float:
    """The share of different words that occur more than once; 0 for no words."""
    once: set[str] = set()
    again: set[str] = set()
    for word in text.lower().split():
        (again if word in once else once).add(word)
    return len(again) / len(once) if once else 0.0


def _latest(messages: Iterable[Mapping[str, Any]]) -> str:
    """The last ``READ_CHARACTERS`` of what was said, or a little less."""
    parts: list[str] = []
    room = READ_CHARACTERS
    for message in reversed(list(messages)):
        for text in reversed(list(_texts(message))):
            parts.append(text[-room:])
            room -= len(parts[-1]) + 1
            if room <= 0:
                return " ".join(reversed(parts))
    return " ".join(reversed(parts))


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a message: its content, or the text parts of it."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, Mapping) and isinstance(text := part.get("text"), str):
                yield text
