"""All commands, and their common parts: the global options, and how errors are shown."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from scheduler import __version__
from scheduler.cli import admin, demo, dev, doctor, enqueue, kinds, subscribe, worker
from scheduler.cli.output import complain, let_go_of_streams, say
from scheduler.cli.session import Session
from scheduler.errors import (
    ConfigError,
    DedupConflict,
    InvalidRequest,
    InvalidTransition,
    JobNotFound,
    NoTicket,
    SchedulerError,
)

EXIT_FAILURE = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
MISTAKES = (ConfigError, DedupConflict, InvalidRequest, InvalidTransition, JobNotFound, NoTicket)

# Newer versions of Typer bring their own copy of click, and export only this class of it.
_UsageError: Any = typer.BadParameter.__bases__[0]


class _Root(TyperGroup):
    """Shows an error as one line on stderr. The exit code tells mistakes of the user from other failures."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the global options."""
        with _errors_shown():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _errors_shown():
            return super().invoke(ctx)


@contextmanager
def _errors_shown() -> Iterator[None]:
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except SchedulerError as error:
        complain(str(error), *getattr(error, "__notes__", ()))
        raise typer.Exit(EXIT_MISTAKE if isinstance(error, MISTAKES) else EXIT_FAILURE) from None
    except _UsageError as error:
        if type(error).show is not _UsageError.show:  # no arguments: it shows the help
            raise
        command = error.ctx.command_path if error.ctx else "prompt-scheduler"
        message = error.format_message().removeprefix("Invalid value: ").replace(" Value error,", "")
        complain(f"{message.rstrip('.')}; see {command} --help")
        raise typer.Exit(EXIT_MISTAKE) from None
    except UnicodeEncodeError as error:
        complain(f"{error.object!r} is not valid UTF-8")
        raise typer.Exit(EXIT_MISTAKE) from None
    except OSError as error:
        let_go_of_streams()
        if error.errno == errno.EPIPE:  # the reader of the pipe has closed it
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        complain(": ".join(str(one) for one in (error.filename, error.strerror or error) if one))
        raise typer.Exit(EXIT_FAILURE) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _version(asked: bool) -> None:
    if asked:
        say(f"prompt-scheduler {__version__} (Python {sys.version.split()[0]})")
        raise typer.Exit


app = typer.Typer(
    name="prompt-scheduler",
    cls=_Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    ctx: typer.Context,
    *,
    redis_url: Annotated[
        str | None,
        typer.Option(
            help="Redis to use; overrides SCHEDULER_REDIS_URL and the configuration.", metavar="URL"
        ),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(help="Queue to use; overrides SCHEDULER_QUEUE.", metavar="NAME")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with the settings; overrides SCHEDULER_CONFIG.", metavar="FILE"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """A priority queue on Redis in front of LLM back ends."""
    _find_modules_here()
    ctx.obj = Session(redis_url=redis_url, queue=queue, config=config)


def _find_modules_here() -> None:
    """Make custom stages and model workers in the current folder importable, as arq does."""
    with suppress(FileNotFoundError):  # the folder has been deleted
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)


app.command()(demo.demo)
app.command()(dev.dev)
app.command()(worker.worker)
app.command()(enqueue.enqueue)
app.command()(kinds.embed)
app.command()(kinds.rerank)
app.command()(subscribe.subscribe)
app.command()(doctor.doctor)
app.add_typer(admin.app, name="admin")
