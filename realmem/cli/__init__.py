"""
The command ``realmem``: subcommands are loaded when they are called.

It exits 0 on success, 1 on a failed job, 2 on bad usage, and says on stderr, in one line, why.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

import realmem

COMMANDS = {
    "bench": "realmem.cli.bench",
    "topology": "realmem.cli.topology",
}


class Commands(click.Group):
    """A group whose commands are modules, each with a command of its own name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names, for the help text."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run, and turn what goes wrong into an exit status and one line."""
        options["standalone_mode"] = False
        options.setdefault("prog_name", "realmem")
        if sys.stdout is None:
            self._fail("standard output is closed", 1)      # before a long job, not after it
        try:
            status = super().main(args, *more, **options)
            sys.stdout.flush()
        except BrokenPipeError:
            self._drop_output()         # the reader had enough
            sys.exit(1)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help() if error.ctx else "", err=True)
            sys.exit(2)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "realmem"
            self._fail(f"{error.format_message()} (see {where} --help)", 2)
        except click.ClickException as error:
            self._fail(error.format_message(), 1)
        except (click.Abort, KeyboardInterrupt):
            self._fail("interrupted", 1)
        except OSError as error:
            self._drop_output()
            self._fail(_describe(error), 1)
        except (MemoryError, ValueError) as error:
            self._fail(str(error) or type(error).__name__, 1)
        sys.exit(status if isinstance(status, int) else 0)

    @staticmethod
    def _drop_output() -> None:
        """Where output cannot go, what is left of it goes nowhere, not even at exit."""
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    @staticmethod
    def _fail(message: str, status: int) -> None:
        line = " ".join(message.split("\n", 1)[0].split())
        click.echo(f"realmem: {line}", err=True)
        sys.exit(status)


def _describe(error: OSError) -> str:
    """Give an OSError's message without its number, with its file."""
    what = error.strerror or str(error) or errno.errorcode.get(error.errno or 0, "I/O error")
    return f"{error.filename}: {what}" if error.filename else what


@click.group(cls=Commands, no_args_is_help=True, context_settings={"max_content_width": 80})
@click.version_option(realmem.__version__, prog_name="realmem")
def main() -> None:
    """Linux's memory management on real memory and real NUMA nodes."""
