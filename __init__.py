"""SMRABooth for ComfyUI: your subject in your motion, with the WAN video model."""

# The host imports this folder as a package; a test runner that meets the file alone must get by without it.
if __package__:
    from .nodes import NODE_CLASS_MAPPINGS
    from .nodes.host.versions import log_versions

    log_versions()

    WEB_DIRECTORY = "./nodes/web"

    __all__ = ["NODE_CLASS_MAPPINGS", "WEB_DIRECTORY"]
