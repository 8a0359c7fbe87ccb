"""Steps of other trainers, by their own models, LoRA modules and losses."""

import sys
import types
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from . import ours
from .turns import Turns
from .work import CLIP, RANK, RATE, ROLES, SIGMA, Work, describe


def train_peft(work: Work, folder: Path | None, turns: Turns) -> None:
    """diffusers' model with peft's LoRA and a loop written by hand, as their examples are."""
    import peft

    from smra_core.standalone.native_part import DIT

    dit = DIT.load(work.weights, torch.float32).requires_grad_(False)
    dit.enable_gradient_checkpointing()
    latents, context = work.make_inputs()

    def predict(noisy, sigma):
        return dit(noisy, sigma * 1000, context, return_dict=False)[0]

    with torch.no_grad():
        velocity = predict(latents, torch.tensor([SIGMA]))
    linears = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linears), dit)
    dit.train()
    parameters = [parameter for parameter in dit.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    turns.begin(**describe(velocity))
    while True:
        sigma, noise = torch.rand(1), torch.randn_like(latents)
        loss = F.mse_loss(predict(torch.lerp(latents, noise, sigma), sigma), noise - latents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        turns.end_step()


def train_diffsynth(work: Work, folder: Path, turns: Turns) -> None:
    """DiffSynth-Studio: what its runner does in a step, without the loading of data."""
    sys.path.insert(0, str(folder))
    if "modelscope" not in sys.modules:  # by which it downloads
        sys.modules["modelscope"] = types.SimpleNamespace(snapshot_download=None)
    from diffsynth.diffusion.loss import FlowMatchSFTLoss
    from diffsynth.diffusion.training_module import DiffusionTrainingModule
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.pipelines.wan_video import WanVideoPipeline
    from safetensors.torch import load_file

    pipe = WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.dit = WanModel(
        dim=work.sizes.dim, in_dim=16, ffn_dim=work.sizes.ffn, out_dim=16, text_dim=4096, freq_dim=256,
        eps=1e-6, patch_size=(1, 2, 2), num_heads=work.sizes.heads, num_layers=work.sizes.blocks,
        has_image_input=False,
    )  # fmt: skip
    pipe.dit.load_state_dict(load_file(work.weights))
    pipe.scheduler.set_timesteps(1000, training=True)
    latents, context = work.make_inputs()
    with torch.no_grad():
        timestep = torch.tensor([1000 * SIGMA])
        velocity = pipe.model_fn(pipe.dit, latents=latents, timestep=timestep, context=context)
    pipe.dit.requires_grad_(False)
    DiffusionTrainingModule().add_lora_to_model(pipe.dit, list(ROLES), RANK, upcast_dtype=torch.float32)
    pipe.dit.train()
    parameters = [parameter for parameter in pipe.dit.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    turns.begin(**describe(velocity))
    while True:
        loss = FlowMatchSFTLoss(pipe, input_latents=latents, context=context, use_gradient_checkpointing=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        turns.end_step()


def train_musubi(work: Work, folder: Path, turns: Turns) -> None:
    """musubi-tuner: the body of its training loop, on the trainer's own methods."""
    sys.path.insert(0, str(folder / "src"))
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: 0  # asked for when its text encoder is imported
    from accelerate import Accelerator
    from musubi_tuner import wan_train_network as musubi
    from musubi_tuner.modules.scheduling_flow_match_discrete import FlowMatchDiscreteScheduler
    from musubi_tuner.networks import lora_wan
    from musubi_tuner.wan.modules import model as modules

    modules.flash_attention = _attend  # its own rounds float32 to bfloat16, which a CPU computes slowly
    parser = musubi.wan_setup_parser(musubi.setup_parser_common())
    args = parser.parse_args([
        "--dit", str(work.weights), "--task", "t2v-1.3B", "--mixed_precision", "no", "--sdpa",
        "--gradient_checkpointing", "--timestep_sampling", "shift", "--discrete_flow_shift", "3",
        "--weighting_scheme", "none",
    ])  # fmt: skip
    config = musubi.WAN_CONFIGS[args.task]
    config.num_layers, config.dim, config.ffn_dim, config.num_heads = work.sizes
    trainer, accelerator = musubi.WanNetworkTrainer(), Accelerator(cpu=True)
    trainer.handle_model_specific_args(args)
    dit = trainer._load_dit_and_swap(args, accelerator, torch.float32)
    latents, context = work.make_inputs()
    with torch.no_grad():
        tokens = latents[0, 0].numel() // 4
        velocity = dit(latents, t=torch.tensor([1000 * SIGMA]), context=list(context), seq_len=tokens)[0]
    network = lora_wan.create_arch_network(1.0, RANK, RANK, None, None, dit)
    network.apply_to(None, dit, apply_text_encoder=False, apply_unet=True)
    dit.enable_gradient_checkpointing(False)
    dit.train()
    parameters = list(network.get_trainable_params())
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    scheduler = FlowMatchDiscreteScheduler(shift=args.discrete_flow_shift, reverse=True, solver="euler")
    dtypes = dict(dit_dtype=torch.float32, network_dtype=torch.float32)
    turns.begin(**describe(velocity))
    while True:
        batch = {"latents": latents, "t5": [context[0].clone()], "timesteps": None}
        loss, _ = trainer.process_batch(
            args, accelerator, dit, network, batch, latents, torch.randn_like(latents), scheduler,
            vae=None, global_step=0, **dtypes,
        )  # fmt: skip
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.detach().item()
        turns.end_step()


def _attend(qkv, *args, **kwargs):
    q, k, v = (part.transpose(1, 2) for part in qkv)
    qkv.clear()
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()


def train_node(work: Work, folder: Path, turns: Turns, bypass: bool) -> None:
    """ComfyUI's TrainLoraNode, which also trains norms, biases and the layers around the blocks.

    `bypass` is its bypass_mode, which computes a LoRA beside the weights.
    """
    with torch.inference_mode():
        model = ours.load_host_model(folder, work)
        from comfy_extras.nodes_train import TrainLoraNode

        latents, context = work.make_inputs()
    values = dict(
        model=model, latents={"samples": latents}, positive=[[context, {}]], batch_size=1, steps=10**6,
        grad_accumulation_steps=1, learning_rate=RATE, rank=RANK, optimizer="AdamW", loss_function="MSE",
        seed=0, training_dtype="fp32", lora_dtype="fp32", quantized_backward=False, algorithm="LoRA",
        gradient_checkpointing=True, checkpoint_depth=2, offloading=False, existing_lora="[None]",
        bucket_mode=False, bypass_mode=bypass,
    )  # fmt: skip
    update = torch.optim.AdamW.step

    def update_and_wait(optimizer, *args, **kwargs):
        result = update(optimizer, *args, **kwargs)
        turns.end_step()
        return result

    torch.optim.AdamW.step = update_and_wait
    turns.begin(about="loads the model again by itself")
    with torch.inference_mode():  # as in a graph
        TrainLoraNode.execute(**{name: [value] for name, value in values.items()})


TRAINERS = {
    "peft": train_peft,
    "diffsynth": train_diffsynth,
    "musubi": train_musubi,
    "node": partial(train_node, bypass=False),
    "node-bypass": partial(train_node, bypass=True),
}
"""Trainers by name."""
