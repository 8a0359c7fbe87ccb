"""A line of text on a node while its graph runs, and the schema marks that old hosts lack a name for."""

ADVANCED = {"advanced": True}
"""As `extra_dict` of an input: folded away in the graph. Hosts before 0.4 have no argument for it."""


def show_text(node: type, text: str) -> None:
    """Write text on the node in the graph; nothing happens where no server runs."""
    from server import PromptServer

    server, hidden = getattr(PromptServer, "instance", None), getattr(node, "hidden", None)
    if server is not None and hidden is not None and hidden.unique_id is not None:
        server.send_progress_text(text, hidden.unique_id)
