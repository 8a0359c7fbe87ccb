"""SMRA Compare Grid on the server: the videos of ComfyUI's own sampler, each once, and their report."""

import json

import pytest
import torch

from smra_core.data.video import read_video
from smra_core.lora.adapter import init_lora
from smra_core.lora.metadata import LoraMetadata
from smra_core.lora.plan import MOTION, SUBJECT
from smra_core.lora.writer import save_lora
from smra_core.miniature.model_files import MINIATURE_FILES

STEPS, FRAMES = 2, 5
STRONG = 0.5
"""Standard deviation of the LoRAs' factors: each strength makes another video."""
RUN = {"steps": STEPS, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}


@pytest.fixture(scope="module", autouse=True)
def lora_files(server):
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, plan) in enumerate((("grid_ball", SUBJECT), ("grid_zigzag", MOTION))):
        generator = torch.Generator().manual_seed(number)
        lora = init_lora(MINIATURE_FILES.spec, plan, 4, generator)
        for pair in lora.values():
            pair.b.data.normal_(0, STRONG, generator=generator)
        about = LoraMetadata(
            purpose="subject",
            plan=str(plan),
            rank=4,
            base_model="",
            captions=(),
            steps=1,
            name=name,
            version="1",
        )
        save_lora(folder / f"{name}.safetensors", lora, about)


def make_prompt(**changed):
    grid = {
        "model": ["mini", 0], "clip": ["mini", 1], "vae": ["mini", 2], "negative": ["negative", 0],
        "latent_image": ["latent", 0], "name": "hosted",
        "prompt": "a {subject} {motion} on a navy background",
        "subject_loras": "grid_ball.safetensors | sks ball",
        "motion_loras": "grid_zigzag.safetensors | moving",
        "subject_strengths": "0, 1", "motion_strengths": "1", "t_points": "", "seeds": "1, 2", "fps": 8.0,
        "switch_step": 0, **RUN,
    } | changed  # fmt: skip
    latent = {"width": 64, "height": 64, "length": FRAMES, "batch_size": 1}
    return {
        "mini": {"class_type": "SMRALoadMiniature", "inputs": {}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["mini", 1], "text": ""}},
        "latent": {"class_type": "EmptyHunyuanLatentVideo", "inputs": latent},
        "grid": {"class_type": "SMRACompareGrid", "inputs": grid},
    }


def list_videos(server, name="hosted"):
    return {
        file.stem: file for file in (server.base / "output" / "smra" / "grids" / name).glob("cells/*.mp4")
    }


def read_frames(file):
    return read_video(file, (64, 64), FRAMES).frames


def run(server, prompt):
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry


def make_by_hand(prompt, strength, seed):
    """The prompt with the cell of a strength and a seed, made of the nodes that an artist would take."""
    text = "a sks ball moving on a navy background"
    loras = {"subject_lora": "grid_ball.safetensors", "subject_strength": strength}
    loras |= {"motion_lora": "grid_zigzag.safetensors", "motion_strength": 1.0}
    sampler = {"seed": seed, "denoise": 1.0, "positive": ["positive", 0], "negative": ["negative", 0]}
    saver = {
        "images": ["frames", 0],
        "name": "by hand",
        "labels": "a: b",
        "fps": 8.0,
        "note": "",
        "key": "cell",
    }
    nodes = {
        "positive": ("CLIPTextEncode", {"clip": ["mini", 1], "text": text}),
        "loader": ("SMRASparseLoRALoader", {"model": ["mini", 0], **loras}),
        "sampler": ("KSampler", {"model": ["loader", 0], "latent_image": ["latent", 0], **sampler, **RUN}),
        "frames": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["mini", 2]}),
        "saver": ("SMRASaveGridCell", saver),
        "report": ("SMRAWriteGridReport", {"grid": ["saver", 0], "name": "by hand", "title": ""}),
    }
    del prompt["grid"]
    return prompt | {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_a_grid_makes_each_video_once_as_the_hosts_own_nodes_do(server):
    run(server, make_prompt())
    first = {key: file.read_bytes() for key, file in list_videos(server).items()}
    folder = server.base / "output" / "smra" / "grids" / "hosted"
    assert len(first) == 4 and len(set(first.values())) == 4
    assert all((folder / name).stat().st_size > 1000 for name in ("report.html", "wall.mp4", "sheet.png"))

    run(server, make_by_hand(make_prompt(), 1.0, 2))
    (by_hand,) = list_videos(server, "by_hand").values()
    videos = list_videos(server)
    distances = {key: (read_frames(file) - read_frames(by_hand)).abs().mean() for key, file in videos.items()}
    nearest = min(distances, key=distances.get)
    # The host's VAE decodes the same latents a little differently each time on a CPU.
    assert distances[nearest] < 0.01 < min(value for key, value in distances.items() if key != nearest)
    labels = json.loads(videos[nearest].with_suffix(".json").read_text("utf-8"))["labels"]
    assert (labels["subject strength"], labels["seed"]) == ("1", "2")

    removed, *kept = sorted(first)
    videos[removed].unlink()
    run(server, make_prompt())
    assert list_videos(server).keys() == first.keys()
    times = {key: list_videos(server)[key].stat().st_mtime_ns for key in kept}
    names = ("dinov2", "sea_raft", "subject", "motion")
    networks = {name: ["mini", output] for name, output in zip(names, (3, 4, 5, 7), strict=True)}
    run(server, make_prompt(seeds="1, 2, 3", **networks))
    second = list_videos(server)
    assert len(second) == 6 and removed in second
    assert {key: second[key].stat().st_mtime_ns for key in kept} == times
    page = (folder / "report.html").read_text("utf-8")
    assert '"Motion Fidelity (flow)": [' in page and '"DINO-I (DINOv2)": [' in page
    assert all(list(folder.glob(f"cells/{key}.*.metrics.json")) for key in second)


def test_a_pair_makes_its_steps_with_both_experts(server):
    both = {"model_low_noise": ["mini", 0], "switch_step": 1, "seeds": "1", "subject_strengths": "1"}
    run(server, make_prompt(name="pair", **both))
    run(server, make_prompt(name="one expert", seeds="1", subject_strengths="1"))
    (pair,), (alone,) = (list_videos(server, name).values() for name in ("pair", "one_expert"))
    # Twice the same expert is that expert in two parts.
    assert (read_frames(pair) - read_frames(alone)).abs().mean() < 0.01


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"subject_loras": "gone.safetensors"}, "not in models/loras"),
        ({"seeds": "one"}, "seeds must be numbers"),
        ({"t_points": "7"}, "T_point is 7"),
        ({"motion_loras": "None"}, "no words"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_by_name(server, changed, said):
    entry = server.run(make_prompt(**changed))
    assert entry["status"]["status_str"] == "error" and said in str(entry["status"])
