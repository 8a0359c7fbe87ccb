"""The nodes through the real server: schemas, help pages, and a run over HTTP."""

import pytest
import random_wan
import torch
from comfyui import NAME
from safetensors import safe_open
from safetensors.torch import load_file, save_file

NODES = (
    "SMRATPointScheduler", "SMRASparseLoRALoader", "SMRASparseLoRAPairLoader", "SMRALoadMiniature",
    "SMRAStrengthOptions", "SMRALoaderOptions",
)  # fmt: skip


@pytest.fixture(scope="module")
def info(server):
    return server.get("/object_info")


@pytest.mark.parametrize("node", NODES)
def test_every_input_says_what_it_does(info, node):
    inputs = {**info[node]["input"].get("required", {}), **info[node]["input"].get("optional", {})}
    assert all(len(options) > 1 and options[1].get("tooltip") for options in inputs.values()), node
    assert info[node]["category"] == "SMRABooth" and info[node]["description"]


@pytest.mark.parametrize("node", NODES)
def test_every_node_has_a_help_page(server, node):
    page = server.get(f"/extensions/ComfyUI-SMRABooth/docs/{node}.md", parse=False).decode()
    assert page.startswith("# SMRA ")


def test_the_defaults_are_the_papers(info):
    inputs = info["SMRATPointScheduler"]["input"]["required"]
    defaults = {name: inputs[name][1]["default"] for name in ("step", "of_steps", "reference_shift", "sigma")}
    assert defaults == {"step": 15, "of_steps": 50, "reference_shift": 1.0, "sigma": 0.7}
    strengths = info["SMRAStrengthOptions"]["input"]["required"]
    assert strengths["subject_before"][1]["default"] * 2 == strengths["subject_after"][1]["default"] == 0.8


def scheduler(**changed):
    widgets = {
        "t_point": "step of a reference run", "step": 15, "of_steps": 50, "reference_shift": 1.0,
        "share": 0.3, "sigma": 0.7, "preset": "paper", "run_scheduler": "simple", "run_steps": 50,
    }  # fmt: skip
    return {"class_type": "SMRATPointScheduler", "inputs": widgets | changed}


def shown(entry, node):
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry["outputs"][node]


def test_the_scheduler_says_where_a_wired_run_switches(server):
    prompt = {
        "2": {  # 1, 0.775, 0.55, 0.325, 0.1, 0
            "class_type": "KarrasScheduler",
            "inputs": {"steps": 5, "sigma_max": 1.0, "sigma_min": 0.1, "rho": 1.0},
        },
        "3": scheduler(sigmas=["2", 0]),
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }
    entry = server.run(prompt)
    assert shown(entry, "4")["text"] == ["switch at step 1 of 5, sigma 0.775 (T_point at sigma 0.70)"]
    assert shown(entry, "5")["text"] == ["1"]
    assert shown(entry, "3")["images"]


@pytest.fixture(scope="module")
def lora_files(server, model_blocks):
    """The same LoRA in DiffSynth's names, which the host does not read, and in the host's; and no LoRA."""
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_wan.lora(model_blocks, "", ".default"), folder / "diffsynth.safetensors")
    save_file(random_wan.lora(model_blocks, "diffusion_model.", ""), folder / "stock.safetensors")
    save_file({"unet.up.weight": torch.zeros(2, 2)}, folder / "strange.safetensors")


@pytest.fixture(scope="module")
def model_blocks(server):
    weights = (
        server.base / "custom_nodes" / NAME / "smra_core/miniature/weights/wan_miniature_t2v.safetensors"
    )
    with safe_open(weights, "pt") as file:
        return 1 + max(int(name.split(".")[1]) for name in file.keys() if name.startswith("blocks."))


def loader(**changed):
    widgets = {
        "model": ["1", 0], "subject_lora": "diffsynth.safetensors", "subject_strength": 1.0,
        "motion_lora": "None", "motion_strength": 1.0,
    }  # fmt: skip
    return {"class_type": "SMRASparseLoRALoader", "inputs": widgets | changed}


def loader_options(**changed):
    widgets = {
        "subject_layers": "paper", "subject_custom_layers": "q", "motion_layers": "paper",
        "motion_custom_layers": "v", "constant_lora": "auto",
    }  # fmt: skip
    return {"class_type": "SMRALoaderOptions", "inputs": widgets | changed}


def strength_options(**changed):
    widgets = {"subject_before": 0.4, "subject_after": 0.8, "motion_before": 1.0, "motion_after": 1.0}
    return {"class_type": "SMRAStrengthOptions", "inputs": widgets | changed}


def latents(server, middle, name):
    """Final latents of a short run on the miniature, `middle` standing between the model and the sampler."""
    prompt = {
        "1": {"class_type": "SMRALoadMiniature", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red ball"}},
        "5": {"class_type": "EmptyHunyuanLatentVideo",
              "inputs": {"width": 64, "height": 64, "length": 5, "batch_size": 1}},
        "6": {"class_type": "KSampler",
              "inputs": {"model": ["4", 0], "seed": 1, "steps": 4, "cfg": 1.0, "sampler_name": "euler",
                         "scheduler": "simple", "positive": ["2", 0], "negative": ["2", 0],
                         "latent_image": ["5", 0], "denoise": 1.0}},
        "7": {"class_type": "SaveLatent",
              "inputs": {"samples": ["6", 0], "filename_prefix": f"tests/{name}"}},
    } | middle  # fmt: skip
    shown(server.run(prompt), "7")
    (file,) = (server.base / "output" / "tests").glob(f"{name}_*.latent")
    return load_file(file)["latent_tensor"]


def test_a_diffsynth_lora_over_http_equals_the_stock_loader(server, lora_files):
    base = latents(
        server, {"4": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0], "shift": 8.0}}}, "base"
    )
    everything = {
        "3": loader_options(subject_layers="all"),
        "4": loader(subject_strength=0.5, loader_options=["3", 0]),
    }
    ours = latents(server, everything, "ours")
    stock = latents(
        server,
        {"4": {"class_type": "LoraLoaderModelOnly",
               "inputs": {"model": ["1", 0], "lora_name": "stock.safetensors", "strength_model": 0.5}}},
        "stock",
    )  # fmt: skip
    assert torch.equal(ours, stock)
    assert (ours - base).abs().max() > 0.01


def test_a_schedule_over_http_lies_between_early_and_late(server, lora_files):
    switched = latents(server, {"3": scheduler(step=25), "4": loader(schedule=["3", 0])}, "switched")
    early, late = (
        latents(server, {"4": loader(subject_strength=strength)}, f"constant{strength}")
        for strength in (0.4, 0.8)
    )
    assert (switched - early).abs().max() > 1e-3 and (switched - late).abs().max() > 1e-3
    merged = latents(
        server,
        {"8": strength_options(subject_before=0.4, subject_after=0.4), "3": scheduler(strengths=["8", 0]),
         "9": loader_options(constant_lora="on the fly"),
         "4": loader(schedule=["3", 0], loader_options=["9", 0])},
        "flying",
    )  # fmt: skip
    assert (merged - early).abs().max() < 1e-3


def test_the_miniature_brings_a_subject_and_a_motion(server):
    prompt = {
        "1": {"class_type": "SMRALoadMiniature", "inputs": {}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 5]}},
        "3": {"class_type": "MaskPreview", "inputs": {"mask": ["1", 6]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["1", 7]}},
    }
    entry = server.run(prompt)
    assert [len(shown(entry, node)["images"]) for node in "234"] == [3, 3, 17]


def test_the_loader_reports_what_it_used(server, lora_files, model_blocks):
    prompt = {
        "1": {"class_type": "SMRALoadMiniature", "inputs": {}},
        "4": loader(),
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 3]}},
    }
    (report,) = shown(server.run(prompt), "5")["text"]
    used, all_of_them = 4 * model_blocks, 8 * model_blocks
    assert f"diffsynth.safetensors (diffsynth names), {used} of {all_of_them} layers [q,k,ffn.0]" in report
    assert f"left out by the layer choice: v,o ({used} layers)" in report


def test_a_loader_without_a_lora_is_refused_before_the_run(server):
    prompt = {
        "1": {"class_type": "SMRALoadMiniature", "inputs": {}},
        "4": loader(subject_lora="None"),
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 3]}},
    }
    with pytest.raises(AssertionError, match="No LoRA is chosen, so the plain model would be sampled"):
        server.queue(prompt)
    prompt["4"] = loader(subject_lora="gone.safetensors")
    with pytest.raises(AssertionError, match="gone.safetensors.* is not in models/loras"):
        server.queue(prompt)


def test_a_file_replaced_under_its_name_is_read_anew(server, lora_files, model_blocks):
    file = server.base / "models" / "loras" / "again.safetensors"
    prompt = {"1": {"class_type": "SMRAInspectLoRA", "inputs": {"file": "again.safetensors"}}}
    ranks = []
    for rank in (4, 7):
        name = "diffusion_model.blocks.0.self_attn.q"
        pair = {f"{name}.lora_A.weight": torch.ones(rank, 8), f"{name}.lora_B.weight": torch.ones(8, rank)}
        save_file(pair, file)
        (text,) = shown(server.run(prompt), "1")["text"]
        ranks.append([line.split()[1] for line in text.splitlines() if line.startswith("ranks")])
    assert ranks == [["4"], ["7"]]


@pytest.mark.parametrize(
    ("file", "layers", "message"),
    [
        ("strange.safetensors", "q", "no LoRA of a WAN block"),
        ("diffsynth.safetensors", "ffn.2", "leaves none of the"),
        ("diffsynth.safetensors", "w", "Plan 'w' is not known"),
    ],
)
def test_what_cannot_be_used_is_an_error_in_the_graph(server, lora_files, file, layers, message):
    prompt = {
        "1": {"class_type": "SMRALoadMiniature", "inputs": {}},
        "3": loader_options(subject_layers="custom", subject_custom_layers=layers),
        "4": loader(subject_lora=file, loader_options=["3", 0]),
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 3]}},
    }
    status = server.run(prompt)["status"]
    assert status["status_str"] == "error"
    assert message in str(status["messages"])
