"""What a routes document on this machine would do: checked by the gateway's own code, and sent nowhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import typer
from quorate_core.documents import DocumentError
from quorate_gateway.expectations import Expectation, failure_of, parse_expectation, plain_table
from quorate_gateway.routes import RoutesDocument, check_routes

from quorate_cli.tables import printable


@dataclass(frozen=True, slots=True)
class Outcome:
    """`failure`: what happens instead; None when the expectation holds."""

    text: str
    failure: str | None


@dataclass(frozen=True, slots=True)
class Checked:
    """`outcomes` are those of the expectations that came with the command; of an invalid document there are none.
    `expected`: how many of its own it has, all of which hold when there are no errors."""

    errors: Sequence[DocumentError]
    outcomes: Sequence[Outcome]
    routes: int
    expected: int

    @property
    def is_good(self) -> bool:
        return not self.errors and all(outcome.failure is None for outcome in self.outcomes)

    def told(self, file: str) -> list[str]:
        """One line each, an error as compilers write it."""
        lines = []
        for error in self.errors:
            line = f":{error.line}" if error.line else ""
            path = f" ({error.path})" if error.path else ""
            lines.append(f"{file}{line}: {error.message}{path}")
        for outcome in self.outcomes:
            holds = outcome.failure is None
            lines += [f"holds: {outcome.text}" if holds else f"does not hold: {outcome.text}; {outcome.failure}"]
        if not self.errors:
            own = f"; expectations in it, which hold: {self.expected}" if self.expected else ""
            lines.append(f"{file}: valid; routes: {self.routes}{own}. Nothing was published.")
        return [printable(line) for line in lines]

    def as_json(self) -> dict[str, object]:
        return {
            "valid": not self.errors,
            "errors": [{"message": error.message, "line": error.line, "path": error.path} for error in self.errors],
            "expectations": [
                {"expectation": outcome.text, "holds": outcome.failure is None, "instead": outcome.failure}
                for outcome in self.outcomes
            ],
        }


def parse_expectations(texts: Sequence[str]) -> list[Expectation]:
    """Raises typer.BadParameter."""
    found = []
    for text in texts:
        try:
            found.append(parse_expectation(text))
        except ValueError as error:
            raise typer.BadParameter(f"{text!r}: {error}", param_hint="'--expect'") from error
    return found


def check_document(content: str, expectations: Sequence[Expectation]) -> Checked:
    document, errors = check_routes(content)
    if document is None or errors:
        return Checked(errors, (), 0 if document is None else len(document.routes), 0)
    return Checked((), _outcomes(document, expectations), len(document.routes), len(document.expect))


def _outcomes(document: RoutesDocument, expectations: Sequence[Expectation]) -> list[Outcome]:
    table = plain_table(document)
    return [Outcome(expectation.text, failure_of(table, expectation)) for expectation in expectations]
