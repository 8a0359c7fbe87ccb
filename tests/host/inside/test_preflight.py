"""What is said and refused before anything expensive runs; the metrics are for the published sizes."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from training_models import pack

LATENTS_49, LATENTS_1 = (16, 13, 40, 72), (16, 1, 64, 64)
HALF, FLOAT = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def preflight():
    return pack("nodes.training.forecast")


@pytest.fixture(scope="module")
def core():
    """The parts of the core that the tests use."""
    budget, cost, train = (
        pack(f"smra_core.{name}") for name in ("training.decode_choice", "training.cost", "training.trainer")
    )
    mora, sura, wan = (pack(f"smra_core.{name}") for name in ("training.mora", "training.sura", "wan.spec"))
    return SimpleNamespace(
        estimate=budget.estimate, choose=budget.choose_decode, cost=cost, Train=train.TrainSettings,
        Motion=mora.MotionSettings, Subject=sura.SubjectSettings, spec=wan.WAN_1_3B, projector=sura.projector,
    )  # fmt: skip


def motion(preflight, core, settings=None, train=None, dtype=HALF):
    settings, train = settings or core.Motion(), train or core.Train(steps=400)
    choice = core.estimate(settings, "windowed", False, core.spec)
    return preflight.motion_forecast(core.spec, settings, train, LATENTS_49, choice, dtype), choice


def test_a_motion_is_told_in_modules_parameters_tokens_and_memory(preflight, core):
    forecast, choice = motion(preflight, core)
    # V, O of both attentions, FFN.0 and FFN.2 of 30 blocks at rank 64.
    parameters = 30 * 64 * (4 * (1536 + 1536) + 2 * (1536 + 8960))
    assert (forecast.modules, forecast.parameters, forecast.tokens) == (180, parameters, 13 * 20 * 36)
    assert forecast.memory == pytest.approx(choice.bytes + 16 * parameters, rel=1e-6)
    line = forecast.line(weights=3 * 2**30, seconds=7300.0)
    assert line.startswith(
        "Training on 49 frames of 576x320, decoded windowed, 9360 tokens each: 180 modules, "
    )
    whole = (forecast.memory / 2**30) + 3
    assert f"Up to {whole:.1f} GiB (3.0 of it weights, which may stay in RAM), about 2 h 2 min." in line


def test_memory_follows_batch_precision_and_the_loss(preflight, core):
    once, _ = motion(preflight, core)
    twice, _ = motion(preflight, core, train=core.Train(batch_size=2))
    wide, _ = motion(preflight, core, dtype=FLOAT)
    plain, _ = motion(preflight, core, core.Motion(mora_weight=0.0))
    adapters = 16 * once.parameters
    assert twice.memory - adapters == pytest.approx(2 * (once.memory - adapters), rel=1e-6)
    assert wide.memory == twice.memory
    assert plain.memory == core.cost.count_activation_bytes(core.spec, 9360) + adapters < once.memory
    assert "decoded" not in plain.samples


def test_time_counts_every_sample_and_the_flow(preflight, core):
    aligned, _ = motion(preflight, core, train=core.Train(steps=10, batch_size=2, accumulate=3))
    plain, _ = motion(preflight, core, core.Motion(mora_weight=0.0))
    assert aligned.seconds(1e12) == pytest.approx(60 * aligned.flops / 1e12)
    assert 1.3 < aligned.flops / plain.flops < 1.45  # counted: 1.36


def test_a_subject_is_told_with_its_projector(preflight, core):
    settings, train = core.Subject(), core.Train()
    tell = lambda settings: preflight.subject_forecast(  # noqa: E731
        core.spec, settings, train, LATENTS_1, 5, HALF
    )
    forecast, plain = tell(settings), tell(core.Subject(sura_weight=0.0))
    assert (forecast.modules, forecast.tokens) == (150, 1024)
    assert forecast.parameters == 30 * 32 * (4 * (1536 + 1536) + 1536 + 8960)
    net = core.projector(1536, 1536, 2048, torch.Generator())
    assert forecast.memory - plain.memory == 16 * sum(p.numel() for p in net.parameters())
    assert forecast.line(0, 5.0).startswith(
        "Training on 5 pictures of 512x512, 1024 tokens each: 150 modules"
    )


def test_how_to_decode_is_chosen_by_the_card_and_not_by_what_is_loaded_just_now(core, monkeypatch):
    import comfy.model_management as management

    memory = pack("nodes.host.versions").trainable_memory
    monkeypatch.setattr(management, "get_total_memory", lambda device: 12 * 10**9)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 10**9)
    card = torch.device("cuda")
    assert memory(torch.device("cpu")) is None and memory(card) == 11 * 10**9
    choice = core.choose(core.Motion(), core.spec, card, has_tiny=True, free=memory(card))
    assert choice.decode == "tiny"
    assert core.choose(core.Motion(), core.spec, card, True, free=24e9).decode == "windowed"


@pytest.mark.parametrize("kind", ["SMRATrainSubjectLoRA", "SMRATrainMotionLoRA"])
def test_every_setting_of_the_core_has_a_widget_with_the_cores_default(core, kind):
    node = pack("nodes").NODE_CLASS_MAPPINGS[kind]
    widgets = {item.id: item for item in node.define_schema().inputs}
    own = core.Subject() if "Subject" in kind else core.Motion()
    renamed = {"plan": "layers", "frames": "frame_count", "shift": "training_shift", "seed": "training_seed"}
    for settings in (own, core.Train()):
        for field in fields(settings):
            widget, default = widgets[renamed.get(field.name, field.name)], getattr(settings, field.name)
            if field.name == "steps":
                continue  # each node has its own
            if field.name == "plan":
                default = {str(plan): name for name, plan in pack("smra_core.lora.plan").PLANS.items()}[
                    str(default)
                ]
            assert widget.default == default and "." in widget.tooltip
    front = [name for name, item in widgets.items() if hasattr(item, "default") and not item.extra_dict]
    assert front in (["name", "steps", "rank"], ["name", "steps", "rank", "frame_count"])


def test_a_node_gives_its_values_to_the_core(core):
    module = pack("nodes.train_motion_lora")
    values = {item.id: item.default for item in module.TrainMotionLoRA.define_schema().inputs
              if hasattr(item, "default")}  # fmt: skip
    assert module.motion_settings(values) == core.Motion()
    changed = values | dict(decode="exact", window=5, context=1, layers="all-layers", frame_count=17)
    settings = module.motion_settings(changed)
    assert (settings.decode, settings.window, settings.context, settings.frames) == ("exact", 5, 1, 17)
    assert settings.plan == pack("smra_core.lora.plan").ALL_LAYERS
    with pytest.raises(ValueError, match="Use 64x64"):
        module.motion_settings(values | dict(width=70, height=64))
    with pytest.raises(ValueError, match="WAN needs 4n"):
        module.motion_settings(values | dict(frame_count=6))


def dit(kind, **sizes):
    """A MODEL around one of the host's nets, without weights."""
    from comfy.ldm.wan import model
    from comfy.ops import disable_weight_init

    small = dict(dim=256, ffn_dim=64, num_heads=2, num_layers=1, device="meta", dtype=FLOAT)
    net = getattr(model, kind)(**(small | sizes), operations=disable_weight_init)
    return SimpleNamespace(model=SimpleNamespace(diffusion_model=net))


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("VaceWanModel", dict(model_type="vace", vace_layers=1, vace_in_dim=96)),
        ("CameraWanModel", dict(model_type="camera", in_dim=32)),
        ("WanModel", dict(model_type="i2v", in_dim=36)),
        ("WanModel", dict(model_type="i2v", in_dim=16)),
        ("WanModel", dict(model_type="t2v", in_dim=48)),
    ],
)
def test_variants_of_wan_are_refused_with_what_to_load(kind, sizes):
    with pytest.raises(ValueError, match=f"{kind} with .* input channels.*load Wan2.1-T2V-1.3B or 14B"):
        pack("nodes.host.denoiser").spec_of(dit(kind, **sizes))


def test_what_is_not_wan_is_refused_with_what_to_load():
    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="This MODEL is Linear, not WAN. Load Wan2.1-T2V"):
        pack("nodes.host.denoiser").spec_of(other)
    for net in (torch.nn.Linear(2, 2), SimpleNamespace(z_dim=48)):
        with pytest.raises(ValueError, match="latent channels; WAN 2.1's has 16. Load wan_2.1_vae"):
            pack("nodes.host.vae").check_vae(SimpleNamespace(first_stage_model=net))


def test_a_block_that_is_not_there_is_refused_before_anything_is_loaded(core):
    check = pack("nodes.train_subject_lora").check_settings
    check(core.Subject(align_block=29), core.spec)
    with pytest.raises(ValueError, match="align_block is 30, but this model has blocks 0 to 29"):
        check(core.Subject(align_block=30), core.spec)
    check(core.Subject(align_block=30, sura_weight=0.0), core.spec)
    with pytest.raises(ValueError, match="not a multiple of 16"):
        check(core.Subject(width=500), core.spec)
