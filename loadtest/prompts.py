"""The prompts that engines are asked in benchmarks."""

from typing import Final

Messages = list[dict[str, str]]

TURNS: Final = (
    "Hello! I would like to learn about gardens.",
    "Which vegetables are easy to grow?",
    "How much water do they need?",
    "When should I sow them?",
    "What kind of soil is best?",
    "How do I keep snails away?",
    "Which of them can grow in the shade?",
    "How do I know that they are ripe?",
    "How long can I keep them after the harvest?",
    "Please sum up what we talked about.",
)


def example(nonce: str, question: str) -> Messages:
    """The guide's prompt, with ``nonce`` in its first line."""
    document = (
        f"# Table of People {nonce}\n"
        "| ID | Name | Age | Occupation | Country |\n"
        "|-----|---------------|-----|---------------|---------------|\n"
        "| 1 | John Doe | 29 | Engineer | USA |\n"
        + "| 2 | Jane Smith | 34 | Doctor | Canada |\n"
        * 50
    )
    return [{"role": "user", "content": f"{document}Question: {question}"}]
