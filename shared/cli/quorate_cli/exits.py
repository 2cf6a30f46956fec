"""Exit codes, and how an error is told at the terminal: what, where, and what to do about it."""

from quorate_core.errors import (
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidContent,
    NotFound,
    NotProposed,
    OutcomeUnknown,
    PayloadTooLarge,
    PreconditionFailed,
    QuorateError,
    QuotaExceeded,
    Retry,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_UNAVAILABLE = 5
EXIT_OUTCOME_UNKNOWN = 6

EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 refused or invalid; "
    "5 unavailable, try again; 6 outcome unknown, look before you try again."
)
SHOWN_PLACES_MAX = 20

_ADVICE: dict[type[QuorateError], str] = {
    Unauthenticated: "Give the token: --token-file FILE, or QUORATE_TOKEN_FILE.",
    Forbidden: "Call the control plane by one of its own names, such as 127.0.0.1.",
    PreconditionFailed: "It was changed meanwhile: read it again, and give the version that you have read.",
    InvalidContent: "Nothing was changed, and what was in force still is.",
    QuotaExceeded: "Delete what is no longer needed, and then: quorate cluster compact. Reads and deletes go on.",
    OutcomeUnknown: "It may have been done: look first, and send it again only if it was not.",
}


def exit_code_of(error: QuorateError) -> int:
    """What a script is told of `error`."""
    if isinstance(error, NotFound):
        return EXIT_NOT_FOUND
    if isinstance(error, NotProposed | Unavailable | DeadlineExceeded | TooManyRequests):
        return EXIT_UNAVAILABLE
    if isinstance(error, OutcomeUnknown):
        return EXIT_OUTCOME_UNKNOWN
    if isinstance(error, Conflict | PreconditionFailed | PayloadTooLarge) or error.kind.status in range(400, 500):
        return EXIT_REFUSED
    return EXIT_REFUSED if error.kind.retry is Retry.NEVER else EXIT_FAILED


def describe(error: QuorateError) -> list[str]:
    """The lines that tell of `error`; the first says what went wrong."""
    detail, *more = error.detail.splitlines() or [error.kind.title]
    lines = [f"quorate: {detail}", *more, *_places(error)]
    advice = advice_on(error)
    return [*lines, advice] if advice else lines


def advice_on(error: QuorateError) -> str:
    """What to do about it, or nothing where the error says so itself."""
    own = error.extensions.get("advice")
    if isinstance(own, str):
        return own
    for error_type, advice in _ADVICE.items():
        if isinstance(error, error_type):
            return advice
    if error.kind.retry is Retry.SAFE:
        return "Nothing was done: the same command may be run again."
    return ""


def _places(error: QuorateError) -> list[str]:
    """Where the content is wrong: `errors` of a problem, as the config center and the request validation give it."""
    found = error.extensions.get("errors")
    if not isinstance(found, list):
        return []
    found = [item for item in found if isinstance(item, dict)]
    places = [_place(item) for item in found]
    # The detail often says the first of them; saying it twice helps nobody.
    said = places[:1] if places and _message(found[0]) in error.detail else []
    shown = places[len(said) :]
    left_off = len(shown) - SHOWN_PLACES_MAX
    return shown[:SHOWN_PLACES_MAX] + ([f"  … and {left_off} more"] if left_off > 0 else [])


def _place(item: dict[str, object]) -> str:
    line, path = item.get("line"), item.get("path") or item.get("where")
    where = ", ".join([f"line {line}"] * bool(line) + [str(path)] * bool(path))
    what = _message(item)
    return f"  {where}: {what}" if where else f"  {what}"


def _message(item: dict[str, object]) -> str:
    return str(item.get("message") or item.get("what") or "")
