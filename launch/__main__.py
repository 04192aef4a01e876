"""The command `clozemill VERB --flag=value …`; `python -m launch` is the same."""

import gc
import sys

from launch.stopping import at_once, open_closed_streams, stopping


def main() -> None:
    """Runs the verb that the command line names, then exits."""
    open_closed_streams()
    with stopping(sys.argv[1:]):
        with at_once():
            # Imported late, because signals may already come while this takes its time.
            from launch.command_line import run  # noqa: PLC0415
        code = run(sys.argv[1:])
    gc.freeze()  # otherwise Python looks for garbage several times as it exits
    sys.exit(code)


if __name__ == "__main__":
    main()
