"""One command in a process of its own, which ends with the process that started it.

`python -m smra_core.grid.child COMMAND …` is `python -m smra_core COMMAND …`, but interrupted when its
standard input ends, as it does when its parent is killed: a training then saves its last step.
"""

import _thread
import os
import runpy
import signal
import sys
import threading


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


if __name__ == "__main__":
    stop_with_parent()
    runpy.run_module("smra_core", run_name="__main__", alter_sys=True)
