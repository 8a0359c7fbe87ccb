"""A small graph around the training nodes, and the nodes executed as the host executes them."""

import torch
from encoder_nets import dinov2_file, sea_raft_file
from random_vae import load_vae, load_vae_of_wan22
from random_wan import TRAINED_FFN, dit_state, load_dit

SIDE, FRAMES = 64, 5


def moving(picture):
    """The picture, two pixels further to the right in each frame."""
    return torch.stack([picture.roll(2 * i, 1) for i in range(FRAMES + 2)])


class Graph:
    """What a graph gives to the nodes, made under inference mode; files in `folder`."""

    def __init__(self, folder, with_dinov2=True, is_5b=False):
        channels = 48 if is_5b else 16
        self.model = load_dit(folder, dit_state(ffn=TRAINED_FFN, channels=channels, latents=channels))
        self.vae = load_vae_of_wan22(folder) if is_5b else load_vae(folder)
        self.dinov2 = dinov2_file(folder) if with_dinov2 else None
        self.sea_raft = sea_raft_file(folder)
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(5)
            self.images = torch.rand(2, SIDE, 80, 3, generator=generator)
            self.masks = torch.zeros(2, SIDE, 80)
            self.masks[:, 16:48, 24:56] = 1
            self.frames = moving(self.images[0])
            self.positive = [[torch.randn(1, 7, 4096, generator=generator), {}]]


def defaults(node):
    """Values of the widgets, as the browser would send them."""
    return {
        item.id: item.default
        for item in node.define_schema().inputs
        if hasattr(item, "default") and item.default is not None
    }


def fold_options(nodes, values):
    """Put the values that belong to the options nodes through those nodes."""
    values = dict(values)
    for name, kind in (("noise_range", "SMRANoiseRange"), ("optimizer_options", "SMRAOptimizerOptions")):
        node = nodes[kind]
        given = {key: values.pop(key, value) for key, value in defaults(node).items()}
        values[name] = node.execute(**given).args[0]
    for name, kind in (("training_options", "SMRATrainingOptions"), ("loss_options", "SMRALossOptions")):
        node = nodes[kind]
        given = {key: values.pop(key, value) for key, value in defaults(node).items()}
        links = ("noise_range", "optimizer_options") if kind == "SMRATrainingOptions" else ()
        given |= {key: values.pop(key) for key in links}
        values[name] = node.execute(**given).args[0]
    return values


def train_subject(nodes, graph, **changes):
    node = nodes["SMRATrainSubjectLoRA"]
    given = dict(
        model=graph.model, vae=graph.vae, images=graph.images, positive=graph.positive, masks=graph.masks,
        dinov2=graph.dinov2, steps=3, rank=2, width=SIDE, height=SIDE, accumulate=1, learning_rate=1e-3,
    )  # fmt: skip
    return run_with_lists(node, fold_options(nodes, defaults(node) | given | changes), changes)


LISTS = ("images", "masks", "frames", "positive", "exclude", "captions")


def run_with_lists(node, values, changes):
    """Execute with every input in a list, as the host hands them over; a tuple is a list of several."""
    several = {name for name in LISTS if isinstance(changes.get(name), tuple)}
    inputs = {name: list(value) if name in several else [value] for name, value in values.items()}
    with torch.inference_mode():
        return node.execute(**inputs).args


def train_motion(nodes, graph, **changes):
    node = nodes["SMRATrainMotionLoRA"]
    given = dict(
        model=graph.model, vae=graph.vae, frames=graph.frames, positive=graph.positive, steps=2, rank=2,
        sea_raft=graph.sea_raft, width=SIDE, height=SIDE, frame_count=FRAMES, accumulate=1,
    )  # fmt: skip
    return run_with_lists(node, fold_options(nodes, defaults(node) | given | changes), changes)
