"""Another process that takes locks: reads commands from stdin and answers each one."""

import contextlib
import sys
import time
from pathlib import Path

from vagram_jax.storage import lock


def count(folder, times=15):
    """Adds to a number under the lock; a lock with two owners would lose some."""
    while times:
        try:
            with lock.hold(folder, report=list):
                number = int((folder / "number").read_text())
                time.sleep(0.001)
                (folder / "number").write_text(str(number + 1))
            times -= 1
        except lock.LockedError:
            time.sleep(0.0005)


def main():
    """Answers `hold`, `release` and `count`, each with a folder."""
    with contextlib.ExitStack() as stack:
        for line in sys.stdin:
            command, folder = line.split(maxsplit=1)
            folder = Path(folder.strip())
            try:
                if command == "hold":
                    stack.enter_context(lock.hold(folder, report=list))
                elif command == "release":
                    stack.close()
                else:
                    count(folder)
                print("done", flush=True)
            except lock.LockedError as error:
                print(error, flush=True)


if __name__ == "__main__":
    main()
