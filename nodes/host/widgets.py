"""What a node shows beside its inputs: a line of text after it ran, and which widgets are folded away."""

import sys


def advanced(widget):
    """Mark an input as rarely touched: the graph folds it away. Older hosts take no argument for that."""
    widget.extra_dict = {**widget.extra_dict, "advanced": True}
    return widget


def show_text(node: type, text: str) -> None:
    """Write text on the node in the graph; nothing happens where no server runs."""
    module, hidden = sys.modules.get("server"), getattr(node, "hidden", None)
    server = module and getattr(module.PromptServer, "instance", None)
    if server and hidden is not None and hidden.unique_id is not None:
        server.send_progress_text(text, hidden.unique_id)
