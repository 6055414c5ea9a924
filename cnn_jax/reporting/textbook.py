"""The page of sentences that were tested: a paragraph, tests, a figure, a number and a verdict for each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import page
from .report import Cards, Code, Section, Table, write_report
from .trackers import write_json

MARKS = {"holds": "✓", "holds in part": "◐", "does not hold": "✗"}


def write(folder: Path, *, title: str, command: str, claims: Mapping, notes: Sequence[str], seconds: float) -> Path:
    """Writes `summary.json`, `figures/` and `report.html`; returns the report's path.

    The folder holds the run's `config.json`.

    Args:
        claims: name → claim, each with the texts `said`, `found`, `number`, `verdict` (of `MARKS`) and `caption`, a
            `figure`, `tests`, what is expected → whether it is so, and `numbers`, name → number.
        notes: paragraphs on how it was done.
    """
    folder = Path(folder)
    numbers = {name: value for claim in claims.values() for name, value in claim.numbers.items()}
    counts = {verdict: sum(claim.verdict == verdict for claim in claims.values()) for verdict in MARKS}
    write_json(folder / "summary.json", {"seconds": seconds, **counts, **numbers})
    draw = page.drawing(folder)
    judged = [
        (str(i), name, claim, f"{MARKS[claim.verdict]} {claim.verdict}")
        for i, (name, claim) in enumerate(claims.items(), start=1)
    ]
    rows = [
        [i, claim.said, claim.number, f"{verdict}, {sum(claim.tests.values())} of {len(claim.tests)}"]
        for i, _, claim, verdict in judged
    ]
    return write_report(
        folder / "report.html",
        title=title,
        summary=[
            Cards([(f"{MARKS[verdict]} {verdict}", str(count), "") for verdict, count in counts.items()]),
            *notes,
            Table(["", "what is said", "what was measured", "verdict, tests met"], rows),
            Code(command),
        ],
        sections=[
            Section(
                f"{i}. {claim.said}",
                [
                    Cards([("verdict", verdict, claim.number)]),
                    claim.found,
                    Table(["expected", "seen"], [[test, "✓" if met else "✗"] for test, met in claim.tests.items()]),
                    draw(f"claim_{i.zfill(2)}", claim.figure, claim.caption),
                ],
                f"{i}. {name.replace('_', ' ')}",
            )
            for i, name, claim, verdict in judged
        ],
        footer=page.footer(folder) + f"; {seconds:.0f} s",
    )
