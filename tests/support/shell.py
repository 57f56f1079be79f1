"""Runs one command of the command line, as a shell would."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.host import TIMEOUT, isolated_environment


class Shell:
    """Runs commands in a folder, with a home of their own below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "home").mkdir()
        self.environment = isolated_environment(folder / "home")

    def __call__(
        self, *arguments: str, python: str = sys.executable, launcher: Sequence[str] = (), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `gleitzeit-host` and wait. `launcher` precedes the command; `options` are those of `subprocess.run`."""
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": TIMEOUT * 2, **options}
        return subprocess.run(
            [*launcher, python, "-m", "gleitzeit_host", *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            check=False,
            **options,
        )
