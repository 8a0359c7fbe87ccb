"""A host whose interpreter has neither timm nor segment_anything: what its nodes do, printed as JSON.

Not a test file: tests/host/test_missing_packages.py runs it in an interpreter of its own, because packages
must be hidden before the pack is imported.
"""

import json
import sys
import tempfile
from pathlib import Path

HIDDEN = ("timm", "segment_anything")
SAM_WIDTH = 768
"""Width of ViT-B, by which a file is known as SAM's."""


class HidingFinder:
    """Import finder that reports these packages as not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def message(call) -> str:
    """What a call raises, as text; empty if it raises nothing."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    sys.meta_path.insert(0, HidingFinder())
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401 - imports the pack as the host does
    import folder_paths
    import torch
    from random_wan import pack
    from safetensors.torch import save_file
    from training_graph import Graph, train_motion, train_subject

    nodes = pack("nodes").NODE_CLASS_MAPPINGS
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_output_directory(folder)
        folder_paths.set_temp_directory(folder)
        graph = Graph(Path(folder), with_dinov2=False)
        graph.dinov2 = pack("smra_core.miniature.weight_paths").DINOV2_FILE
        sam = Path(folder, "sam_vit_b.safetensors")
        save_file({"image_encoder.pos_embed": torch.zeros(1, 2, 2, SAM_WIDTH)}, sam)
        results = {
            "nodes": len([node.define_schema() for node in nodes.values()]),
            "dinov2": message(lambda: train_subject(nodes, graph, steps=1)),
            "sam": message(
                lambda: nodes["SMRASegmentSubject"].execute(torch.rand(1, 32, 32, 3), sam, 0.5, 0.5)
            ),
            "without dinov2": message(lambda: train_subject(nodes, graph, steps=1, sura_weight=0.0)),
            "motion": message(lambda: train_motion(nodes, graph, steps=1)),
        }
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    main()
