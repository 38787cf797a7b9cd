"""`python -m c2ser_jax.train --config FILE [--workdir DIR] [--a.b value]…`: runs a config's stages.

Exit codes: 0 when the run is complete or a SIGTERM was answered by saving (the same command goes
on; for schedulers that would take that for done, C2SER_EXIT_WHEN_STOPPED names another code), 2 for
a mistake in what was given.
"""

import argparse
import os
from pathlib import Path

from c2ser_jax.errors import UserError, run_command
from c2ser_jax.huge_pages import use_huge_pages


def main(argv: list[str] | None = None) -> int:
    """Parses the command line, runs every fold, prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m c2ser_jax.train",
        description="Runs the stages of a config file. Any setting can be overridden: "
        "--pretrain.loop.steps 500; --config FILE --help lists them all.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="Python file with get_config(), with or without .py")
    parser.add_argument("--workdir", help="where everything is written (default runs/NAME)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    given, overrides = parser.parse_known_args(argv)
    if given.config is None:
        parser.print_help()
        if {"-h", "--help"} & set(overrides):
            return 0
        raise UserError("--config is missing; try --config configs/quickstart.py")

    when_stopped = _exit_when_stopped()
    # The processes of a run must join before anything touches a device.
    from c2ser_jax.parallel.distributed import initialize_from_environment

    initialize_from_environment()
    from c2ser_jax.compilation import enable_compilation_cache
    from c2ser_jax.config import load_run
    from c2ser_jax.run import execute

    run = load_run(given.config, overrides)
    enable_compilation_cache()
    workdir = Path(given.workdir) if given.workdir else Path("runs") / run.name
    progress = False if given.no_progress else None
    found = execute(run, workdir, progress=progress, say=lambda line: print(line, flush=True))
    return when_stopped if found is None else 0


def _exit_when_stopped() -> int:
    """The exit code of a run that a signal stopped before it was complete."""
    told = os.environ.get("C2SER_EXIT_WHEN_STOPPED", "0")
    if not told.isdecimal() or not 0 <= int(told) <= 255:
        raise UserError(
            f"C2SER_EXIT_WHEN_STOPPED is {told!r}; give an exit code from 0 to 255, such as 143"
        )
    return int(told)


if __name__ == "__main__":
    use_huge_pages("c2ser_jax.train")
    run_command(main)
