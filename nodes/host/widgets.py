"""Text that a node shows in the graph while it runs and after."""

import logging
import sys
from collections.abc import Sequence

log = logging.getLogger("smrabooth")


def show_text(node: type, text: str) -> None:
    """Write text on the node in the graph; nothing happens where no server runs."""
    module, hidden = sys.modules.get("server"), getattr(node, "hidden", None)
    server = module and getattr(module.PromptServer, "instance", None)
    if server and hidden is not None and hidden.unique_id is not None:
        server.send_progress_text(text, hidden.unique_id)


def show_notes(node: type, heading: str, notes: Sequence[str]) -> None:
    """Write notes on the node below a heading, and log each of them, as the command line does."""
    log_notes(notes)
    show_text(node, "\n".join([heading, *notes]))


def log_notes(notes: Sequence[str]) -> None:
    """Log what was read, cropped, left out or assumed, a line each."""
    for note in notes:
        log.info("note: %s", note)
