"""Text that a node shows in the graph while it runs and after."""

import sys


def show_text(node: type, text: str) -> None:
    """Write text on the node in the graph; nothing happens where no server runs."""
    module, hidden = sys.modules.get("server"), getattr(node, "hidden", None)
    server = module and getattr(module.PromptServer, "instance", None)
    if server and hidden is not None and hidden.unique_id is not None:
        server.send_progress_text(text, hidden.unique_id)
