"""`python -m gleitzeit_host` and the command `gleitzeit-host`."""

import os
import sys


def _leave_out_working_folder() -> None:
    """Take away what `python -m` put first: a msgspec.py in the working folder is not ours to import."""
    try:
        folder = os.getcwd()  # noqa: PTH109 - pathlib is slow to import
    except OSError:  # it is gone, and Python has put nothing there
        return
    if sys.path[0] == folder:
        del sys.path[0]


if __name__ == "__main__" and not sys.flags.safe_path:
    _leave_out_working_folder()


def main() -> int:
    """Run the command line; return the exit status."""
    if sys.platform == "win32":
        sys.stderr.write("gleitzeit-host needs Linux or macOS; on Windows, run it in WSL.\n")
        return 2
    from gleitzeit_host import cli  # noqa: PLC0415 - not before the platform is known

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
