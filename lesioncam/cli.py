"""The command line: flags in; a summary and an exit code out.

One parser serves the `lesioncam` command and the scripts in jobs/.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lesioncam import __version__
from lesioncam.errors import InputError, LesioncamError, RunFailedError
from lesioncam.flags import Parser, hint
from lesioncam.interrupts import handle_signals, ignore_signals
from lesioncam.logs import log_to_stderr, print_error
from lesioncam.verbs import VERBS, Verb

log = logging.getLogger("lesioncam")

_SHELLS = ("bash", "zsh", "tcsh")


def run(**options: Any) -> NoReturn:
    """Entry point of a program: runs `main` with these options on its arguments, and exits."""
    handle_signals()
    try:
        code = main(sys.argv[1:], **options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    ignore_signals()
    sys.exit(code)


def main(
    arguments: Sequence[str],
    *,
    verb: str | None = None,
    prog: str = "lesioncam",
    json_logs: bool = False,
) -> int:
    """Run one verb.

    Args:
        arguments: the verb and its flags; only the flags if `verb` is given.
        verb: the verb of a program that has only this one.
        prog: how the program is called, for help and errors.
        json_logs: log one JSON object per line instead of text; results and errors too.

    Returns:
        0 done, 1 the run failed, 2 bad input or refused, 3 done but too many images failed.
    """
    if verb is None and not arguments:
        _main_parser(prog).print_help(sys.stderr)
        return InputError.exit_code
    log_to_stderr(as_json=json_logs)
    try:
        flags = vars(parse(arguments, verb=verb, prog=prog))
        name = flags.pop("verb")
        # A first line at once: what the verbs import takes seconds.
        log.info("lesioncam %s: %s", __version__, name)
        return VERBS[name].run(flags)
    except LesioncamError as error:
        print_error(" ".join(error.command_line_message.split()))
        return error.exit_code
    except KeyboardInterrupt:
        print_error("interrupted; run the same command again to continue")
        return RunFailedError.exit_code


def parse(
    arguments: Sequence[str], *, verb: str | None = None, prog: str = "lesioncam"
) -> argparse.Namespace:
    """Parse a command line. `--help`, `--version` and `--print-completion` print and exit.

    Args:
        arguments: as for `main`.
        verb: likewise.
        prog: likewise.

    Returns:
        `verb` and the flags that were given. A flag that was not given has no attribute: its
        default is that of the function in `lesioncam.api`.

    Raises:
        InputError: an unknown or missing verb or flag, or a bad value.
    """
    if verb is None:
        if not arguments or arguments[0].startswith("-"):
            return _main_parser(prog).parse(arguments)
        verb, *arguments = arguments
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb}; {hint(verb, VERBS, prog)}")
        prog = f"{prog} {verb}"
    parser = Parser(prog=prog)
    _add_verb(parser, VERBS[verb])
    flags = parser.parse(arguments)
    flags.verb = verb
    return flags


class _PrintCompletion(argparse.Action):
    """Prints a script that completes verbs, flags and paths in a shell."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        import shtab  # noqa: PLC0415

        print(shtab.complete(_main_parser(parser.prog, path_completion=shtab.FILE), values))
        parser.exit()


def _main_parser(prog: str, path_completion: Mapping[str, Any] | None = None) -> Parser:
    """The parser of the command without a verb; with `path_completion`, with all verbs' flags."""
    parser = Parser(
        prog=prog,
        usage="%(prog)s VERB [flags]",
        description="Classify skin-lesion images in bulk with two neural networks. Stage 1\n"
        "classifies the whole image; its class activation map (CAM) shows where the\n"
        "lesion is. Stage 2 classifies the crop around the lesion.",
        epilog=f"'{prog} VERB --help' shows the flags of a verb.\n"
        "A URI is a local path or s3://bucket/prefix.\n\n"
        "exit codes:\n"
        "  0  done\n"
        "  1  the run failed; run the same command again to continue\n"
        "  2  bad input, or refused; no scores and no bundle were written\n"
        "  3  done, but more images failed than --max-failed-fraction allows\n\n"
        "completion of verbs, flags and paths in bash (also zsh, tcsh):\n"
        '  eval "$(lesioncam --print-completion bash)"',
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        added = verbs.add_parser(name, help=verb.summary)
        if path_completion is not None:
            _add_verb(added, verb)
            added.add_path_completion(path_completion)
    flags = parser.add_argument_group("flags")
    flags.add_argument("-h", "--help", action="help", help="print this help")
    flags.add_argument(
        "--version", action="version", version=f"lesioncam {__version__}", help="print the version"
    )
    flags.add_argument(
        "--print-completion",
        metavar="SHELL",
        choices=_SHELLS,
        action=_PrintCompletion,
        help="print a completion script",
    )
    return parser


def _add_verb(parser: Parser, verb: Verb) -> None:
    parser.description = verb.description
    parser.epilog = f"example:\n  {verb.example}"
    verb.add_flags(parser)
    flags = parser.add_argument_group("help")
    flags.add_argument("-h", "--help", action="help", help="print this help")
    parser.set_usage()
