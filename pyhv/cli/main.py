# SPDX-License-Identifier: GPL-2.0-only
"""The `pyhv` command. Its parts import what is heavy only when they run, so that help is instant.

Here is the one boundary between exceptions and exit codes: a `PyhvError` is told in one sentence, Ctrl-C is
130, and everything else that arrives is a bug of pyhv.
"""

import gc
import os
from typing import Any, Final

import click

from pyhv import __version__
from pyhv.cli.boot import boot
from pyhv.cli.build import build
from pyhv.cli.doctor import doctor
from pyhv.cli.fetch import fetch
from pyhv.cli.image import image
from pyhv.cli.inspect import inspect
from pyhv.cli.messages import VERBOSE, say
from pyhv.cli.replay import replay
from pyhv.cli.restore import restore
from pyhv.errors import ExitCode, PyhvError

EPILOG: Final = """\b
Examples:
  pyhv boot                   a demonstration: several guests on one machine
  pyhv boot debian            Debian's stock kernel, with a shell
  pyhv inspect vmlinuz        can this kernel boot?
  pyhv image create d.img     a Debian of its own, on a disk
  pyhv restore debian.snap    go on where `pyhv boot --save` stopped
  pyhv replay run.rec         the run that `pyhv boot --record` has written down
  pyhv build mine.S -o mine.img && pyhv boot mine.img
  pyhv doctor                 does it run here, and what is in effect?
"""

_ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "1")
"""numpy's linear algebra, which pyhv does not use, would start a thread for each processor of the host when
it is loaded; that costs more processor time than numpy itself. Who has set the variable is heeded."""


class Boundary(click.Group):
    """A group of commands that ends every failure with the exit code it deserves."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        What it makes while it starts stays until it ends; so the collector begins when a machine runs
        (`session.py`), and need not look at thousands of classes and functions again and again until then.
        """
        gc.disable()
        os.environ.setdefault(*_ONE_THREAD)
        try:
            return super().invoke(ctx)
        except PyhvError as error:
            say(str(error))
            if ctx.meta.get(VERBOSE):
                import traceback

                click.echo(traceback.format_exc(), err=True, nl=False)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # the boundary: whatever it is, a person gets one sentence
            _tell_bug(error, bool(ctx.meta.get(VERBOSE)))
            ctx.exit(ExitCode.BUG)
        finally:
            gc.enable()


def _tell_bug(error: Exception, verbose: bool) -> None:
    import traceback

    summary = traceback.format_exception_only(error)[-1].strip()
    say(f"internal error: {summary}")
    if verbose:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        say(f"this is a bug of pyhv {__version__}; please report it with what is above")
    else:
        say(f"this is a bug of pyhv {__version__}; please report it, with what -v shows")


@click.group(cls=Boundary, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pyhv", message="%(prog)s %(version)s")
def main() -> None:
    """Pyhv runs real Xen PV kernels, unmodified, on an emulated x86 processor.

    See `pyhv COMMAND --help` for each command.
    """


main.add_command(boot)
main.add_command(restore)
main.add_command(replay)
main.add_command(inspect)
main.add_command(build)
main.add_command(fetch)
main.add_command(image)
main.add_command(doctor)

if __name__ == "__main__":
    main()
