"""The miniature as a WAN model on disk, and the word that names it on the command line."""

from ..standalone.model_files import WanFiles
from .weight_paths import DIT_FILE, VAE_FILE

MINIATURE = "miniature"
MINIATURE_FILES = WanFiles(DIT_FILE, VAE_FILE, None)
