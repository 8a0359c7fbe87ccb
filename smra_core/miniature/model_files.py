"""The miniature's files as a WAN model, and its name on the command line."""

from ..standalone.model_files import WanFiles
from .weight_paths import DIT_FILE, VAE_FILE

MINIATURE = "miniature"
MINIATURE_FILES = WanFiles(DIT_FILE, VAE_FILE, None)
