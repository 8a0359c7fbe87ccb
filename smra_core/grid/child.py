"""One command in a process of its own, which ends with the process that started it.

`python -m smra_core.grid.child 1 COMMAND …` is `python -m smra_core COMMAND …`, but interrupted when its
standard input ends, as it does when its parent is killed: a training then saves its last step. With 2 in
place of 1 it starts two such processes by torchrun, each of which trains on a GPU of its own.
"""

import _thread
import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence


def stop_with_parent() -> None:
    """Interrupt the main thread when standard input ends.

    A shell that starts a job in the background lets it ignore interrupts, and its children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)

    standard_input, main_thread = sys.stdin.fileno(), threading.get_ident()

    def wait_for_the_end() -> None:
        # Not sys.stdin, whose lock would be held when the interpreter ends.
        while os.read(standard_input, 1):
            pass
        if hasattr(signal, "pthread_kill"):  # not on Windows; it also ends a wait
            signal.pthread_kill(main_thread, signal.SIGINT)
        else:
            _thread.interrupt_main()

    threading.Thread(target=wait_for_the_end, daemon=True).start()


def run_processes(count: int, command: Sequence[str]) -> int:
    """Run a command in so many processes; return the exit code of the first that failed, or 0."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    module = ["-m", "smra_core.grid.child", "1", *command]
    try:
        main(["--standalone", f"--nproc-per-node={count}", *module])
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    return 0


if __name__ == "__main__":
    count = int(sys.argv.pop(1))
    if count > 1:
        sys.exit(run_processes(count, sys.argv[1:]))
    stop_with_parent()
    runpy.run_module("smra_core", run_name="__main__", alter_sys=True)
