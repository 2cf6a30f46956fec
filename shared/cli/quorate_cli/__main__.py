"""Starts the `quorate` command, and is the one place where its errors become text and exit codes."""

import os
import sys

import typer
from quorate_core.errors import QuorateError

from quorate_cli.app import app
from quorate_cli.exits import EXIT_FAILED, EXIT_OK, describe, exit_code_of


def main() -> None:
    try:
        app(prog_name="quorate")
    except QuorateError as error:
        for line in describe(error):
            typer.echo(line, err=True)
        raise SystemExit(exit_code_of(error)) from None
    except BrokenPipeError:
        # The reader has seen enough (`| head`). What is still buffered must not fail again at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_OK) from None
    except OSError as error:
        typer.echo(f"quorate: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), err=True)
        raise SystemExit(EXIT_FAILED) from None


if __name__ == "__main__":
    main()
