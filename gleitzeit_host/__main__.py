"""`python -m gleitzeit_host` and the command `gleitzeit-host`."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # the working folder: a msgspec.py in it is not ours to import


def main() -> int:
    """Run the command line; return the exit status."""
    if sys.platform == "win32":
        sys.stderr.write("gleitzeit-host needs Linux or macOS; on Windows, run it in WSL.\n")
        return 2
    from gleitzeit_host import cli  # noqa: PLC0415 - not before the platform is known

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
