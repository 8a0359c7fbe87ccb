"""What is said and refused before anything expensive runs; the metrics are for the published sizes."""

import inspect
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from random_wan import pack

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
        Motion=mora.MotionSettings, Subject=sura.SubjectSettings, spec=wan.WAN_1_3B,
        projector=sura.make_projector,
    )  # fmt: skip


def motion(preflight, core, settings=None, train=None, dtype=HALF):
    settings, train = settings or core.Motion(), train or core.Train(steps=400)
    choice = core.estimate(settings, "windowed", False, core.spec)
    return preflight.estimate_motion_run(core.spec, settings, train, choice, dtype), choice


def test_a_motion_is_told_in_modules_parameters_tokens_and_memory(preflight, core):
    forecast, choice = motion(preflight, core)
    # V, O of both attentions, FFN.0 and FFN.2 of 30 blocks at rank 64.
    parameters = 30 * 64 * (4 * (1536 + 1536) + 2 * (1536 + 8960))
    assert (forecast.modules, forecast.parameters, forecast.tokens) == (180, parameters, 13 * 20 * 36)
    nets = 0.15e9 + 79e6  # WAN's decoder in half precision, and SEA-RAFT M
    assert forecast.memory == pytest.approx(choice.bytes + 16 * parameters + nets, rel=1e-6)
    line = forecast.describe(weights=3 * 2**30, seconds=7300.0)
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
    adapters, flow_net, decoder = 16 * once.parameters, 79e6, 0.15e9
    rest = adapters + flow_net + decoder
    assert twice.memory - rest == pytest.approx(2 * (once.memory - rest), rel=1e-6)
    assert wide.memory == pytest.approx(twice.memory + decoder, rel=1e-6)
    assert plain.memory == core.cost.count_activation_bytes(core.spec, 9360) + adapters < once.memory
    assert "decoded" not in plain.samples


def test_time_counts_every_sample_and_the_flow(preflight, core):
    aligned, _ = motion(preflight, core, train=core.Train(steps=10, batch_size=2, accumulate=3))
    plain, _ = motion(preflight, core, core.Motion(mora_weight=0.0))
    assert aligned.estimate_seconds(1e12) == pytest.approx(60 * aligned.flops / 1e12)
    assert 1.3 < aligned.flops / plain.flops < 1.45  # counted: 1.36


def test_what_does_not_fit_is_told_by_part_with_what_fits(preflight, core):
    forecast, _ = motion(preflight, core)
    weights = 3 * 2**30
    assert forecast.describe_lack(weights, None) == [] == forecast.describe_lack(weights, 24 * 2**30)
    (text,) = forecast.describe_lack(weights, 10 * 2**30)
    assert "it needs" in text and "activations 7.7" in text and "the device has 10.0 GiB. What fits: " in text
    assert "decode tiny (file lighttaew2_1) (" in text
    with pytest.raises(ValueError, match="This training does not fit: it needs"):
        forecast.describe_lack(weights, 8 * 2**30)


def test_a_subject_is_told_with_its_projector(preflight, core):
    settings, train = core.Subject(), core.Train()
    tell = lambda settings: preflight.estimate_subject_run(  # noqa: E731
        core.spec, settings, train, [1] * 5, HALF
    )
    forecast, plain = tell(settings), tell(core.Subject(sura_weight=0.0))
    assert (forecast.modules, forecast.tokens) == (150, 1024)
    assert forecast.parameters == 30 * 32 * (4 * (1536 + 1536) + 1536 + 8960)
    net = core.projector(1536, 1536, 2048, torch.Generator())
    assert forecast.memory - plain.memory == 16 * sum(p.numel() for p in net.parameters())
    assert forecast.describe(0, 5.0).startswith(
        "Training on 5 pictures of 512x512, 1024 tokens each: 150 modules"
    )


@pytest.mark.parametrize(
    ("lengths", "told", "tokens"),
    [
        ([17], "a clip of 17 frames", 5120),
        ([17, 9], "2 clips of up to 17 frames", 5120),
        ([1, 1, 9], "2 pictures and a clip of 9 frames", 3072),
    ],
)
def test_clips_of_a_subject_are_told_with_the_tokens_of_the_longest(preflight, core, lengths, told, tokens):
    forecast = preflight.estimate_subject_run(core.spec, core.Subject(), core.Train(), lengths, HALF)
    assert forecast.samples == f"{told} of 512x512" and forecast.tokens == tokens


def test_how_to_decode_is_chosen_by_the_card_and_not_by_what_is_loaded_just_now(core, monkeypatch):
    import comfy.model_management as management

    memory = pack("nodes.host.versions").measure_trainable_memory
    monkeypatch.setattr(management, "get_total_memory", lambda device: 12 * 10**9)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 10**9)
    card = torch.device("cuda")
    assert memory(torch.device("cpu")) is None and memory(card) == 11 * 10**9
    choice = core.choose(core.Motion(), core.spec, card, tiny_decoder="tiny", memory=memory(card))
    assert choice.decode == "tiny"
    assert core.choose(core.Motion(), core.spec, card, "tiny", memory=24e9).decode == "exact-low-memory"


OPTIONS = {
    "SMRATrainingOptions", "SMRALossOptions", "SMRAStrengthOptions", "SMRALoaderOptions",
    "SMRAOptimizerOptions", "SMRANoiseRange",
}  # fmt: skip
ON_THE_COMMAND_LINE = {"windows_per_step"}
"""Settings without a widget, as nothing that was measured speaks for another value than the default."""
MOST_WIDGETS, MOST_OPTIONS, MOST_OF_THE_GRID = 9, 13, 14
"""Widgets of a node, of one that holds options alone and is rarely open, and of GRID."""
GRID = "SMRACompareGrid"
"""Holds a whole experiment: its sampler, and rows and columns as lists with an entry in each line."""
TEXT_BOXES = {GRID, "SMRASaveGridCell", "SMRAWriteGridReport"}
"""Nodes with texts of several lines: lists, and what one node of a grid tells the next."""


def widgets_of(kind):
    inputs = pack("nodes").NODE_CLASS_MAPPINGS[kind].define_schema().inputs or ()
    return {item.id: item for item in inputs if hasattr(item, "default") and not item.force_input}


@pytest.mark.parametrize("kind", ["SMRATrainSubjectLoRA", "SMRATrainMotionLoRA"])
def test_every_setting_of_the_core_has_a_widget_with_the_cores_default_and_text(core, kind):
    options = [widgets_of(each) for each in sorted(OPTIONS - {"SMRAStrengthOptions", "SMRALoaderOptions"})]
    widgets = {name: widget for each in options for name, widget in each.items()} | widgets_of(kind)
    own = core.Subject() if "Subject" in kind else core.Motion()
    renamed = {"plan": "layers", "frames": "frame_count", "shift": "training_shift", "seed": "training_seed"}
    for settings in (own, core.Train()):
        for field in fields(settings):
            if field.name in ON_THE_COMMAND_LINE:
                continue
            widget = widgets[renamed.get(field.name, field.name)]
            if field.name != "plan":
                assert widget.tooltip.startswith(field.metadata["help"])
            if field.name == "noise_range":
                assert widget.default == str(settings.noise_range)
            elif field.name not in ("plan", "steps"):  # the paper's two plans are one choice; steps differ
                assert widget.default == getattr(settings, field.name)


def test_what_both_losses_share_has_one_default_and_one_text(core):
    for name in ("weighted_velocity", "shift", "noise_range", "preserve_weight"):
        subject, motion = ({f.name: f for f in fields(kind)}[name] for kind in (core.Subject, core.Motion))
        assert (subject.default, subject.metadata) == (motion.default, motion.metadata)


def test_every_node_fits_a_screen():
    mapping = pack("nodes").NODE_CLASS_MAPPINGS
    for kind, node in mapping.items():
        most = MOST_OPTIONS if kind in OPTIONS else MOST_WIDGETS
        assert len(widgets_of(kind)) <= (MOST_OF_THE_GRID if kind == GRID else most), kind
        for item in node.define_schema().inputs or ():
            assert "advanced" not in (item.extra_dict or {}), kind
            assert kind in TEXT_BOXES or not getattr(item, "multiline", None), kind
    assert set(mapping) >= OPTIONS
    assert list(widgets_of("SMRATrainSubjectLoRA")) == [
        "name", "steps", "rank", "width", "height", "sura_weight", "preview_every", "as_clip",
        "sura_share",
    ]  # fmt: skip
    assert list(widgets_of("SMRATrainMotionLoRA")) == [
        "name", "steps", "rank", "width", "height", "frame_count", "mora_weight", "decode", "preview_every",
    ]  # fmt: skip


def execute_with_defaults(kind, **changes):
    values = {name: item.default for name, item in widgets_of(kind).items()}
    return pack("nodes").NODE_CLASS_MAPPINGS[kind].execute(**(values | changes)).args[0]


def test_options_nodes_at_their_defaults_are_what_an_open_input_stands_for():
    wire = pack("nodes.host.wire_types")
    assert execute_with_defaults("SMRATrainingOptions") == wire.TrainingOptions()
    assert execute_with_defaults("SMRALossOptions") == wire.LossOptions()
    open_inputs = {name: execute_with_defaults(f"SMRA{kind}") for name, kind in
                   (("noise_range", "NoiseRange"), ("optimizer_options", "OptimizerOptions"))}  # fmt: skip
    assert execute_with_defaults("SMRATrainingOptions", **open_inputs) == wire.TrainingOptions()
    assert execute_with_defaults("SMRALoaderOptions") == pack("nodes.sparse_lora_loader").DEFAULTS
    schedule = pack("smra_core.lora.schedule")
    paper = wire.StrengthOptions(schedule.STRENGTH_PRESETS["paper"], schedule.MOTION_STRENGTHS)
    assert execute_with_defaults("SMRAStrengthOptions") == paper


def test_a_node_gives_its_values_and_its_options_to_the_core(core):
    module, wire = pack("nodes.train_motion_lora"), pack("nodes.host.wire_types")
    values = {name: item.default for name, item in widgets_of("SMRATrainMotionLoRA").items()}
    unwired = wire.TrainingOptions(), wire.LossOptions()
    assert module.parse_settings(values, *unwired) == core.Motion()
    training = execute_with_defaults("SMRATrainingOptions", layers="all-layers", training_seed=3)
    losses = execute_with_defaults("SMRALossOptions", window=5, context=1, align_block=2, training_shift=3.0)
    settings = module.parse_settings(values | dict(decode="exact", frame_count=17), training, losses)
    assert (settings.decode, settings.window, settings.context, settings.frames) == ("exact", 5, 1, 17)
    assert settings.plan == pack("smra_core.lora.plan").ALL_LAYERS and settings.shift == 3.0
    assert settings.color_copies == 0
    colored = execute_with_defaults("SMRATrainingOptions", color_copies=3)
    assert module.parse_settings(values, colored, wire.LossOptions()).color_copies == 3
    assert (losses.subject.align_block, losses.subject.shift, training.train.seed) == (2, 3.0, 3)
    with pytest.raises(ValueError, match="Use 64x64"):
        module.parse_settings(values | dict(width=70, height=64), *unwired)
    with pytest.raises(ValueError, match="WAN needs 4n"):
        module.parse_settings(values | dict(frame_count=6), *unwired)


def test_the_subject_node_gives_its_share_and_base_preservation_to_the_core(core):
    module = pack("nodes.train_subject_lora")
    values = {name: item.default for name, item in widgets_of("SMRATrainSubjectLoRA").items()}
    given = dict(
        model=None, vae=None, images=[torch.zeros(1, 64, 64, 3)], positive=[[[torch.ones(1, 2, 4096), {}]]]
    )
    assert module.parse_inputs(**given, **values).settings == core.Subject()
    del values["sura_share"]  # a prompt that was saved before the widget
    assert module.parse_inputs(**given, **values).settings == core.Subject()
    optimizer = execute_with_defaults("SMRAOptimizerOptions", preserve_weight=1.0)
    training = execute_with_defaults("SMRATrainingOptions", optimizer_options=optimizer)
    settings = module.parse_inputs(**given, **values, sura_share=0.3, training_options=training).settings
    assert (settings.sura_share, settings.preserve_weight, settings.sura_weight) == (0.3, 1.0, 0.05)


def dit(kind, **sizes):
    """A MODEL around one of the host's nets, without weights."""
    from comfy.ldm.wan import model
    from comfy.ops import disable_weight_init

    small = dict(dim=256, ffn_dim=64, num_heads=2, num_layers=1, device="meta", dtype=FLOAT)
    net = getattr(model, kind)(**(small | sizes), operations=disable_weight_init)
    return SimpleNamespace(model=SimpleNamespace(diffusion_model=net, model_type="FLOW"))


def test_latents_of_another_vae_are_refused_with_what_to_load():
    with pytest.raises(
        ValueError, match="latents of 24 channels.*of 16 or 48: load a WAN of 1.3B, 14B or 5B"
    ):
        pack("nodes.host.denoiser").read_spec(dit("WanModel", in_dim=24, out_dim=24))


@pytest.mark.parametrize(
    ("kind", "sizes", "name"),
    [
        ("VaceWanModel", dict(model_type="vace", vace_layers=1, vace_in_dim=96), "VaceWanModel, 16 channels"),
        ("CameraWanModel", dict(model_type="camera", in_dim=32), "CameraWanModel, 32 channels"),
        ("WanModel", dict(model_type="i2v", in_dim=36), "WanModel, 36 channels"),
    ],
)
def test_variants_are_named_after_their_class_and_channels(kind, sizes, name):
    spec = pack("nodes.host.denoiser").read_spec(dit(kind, **sizes))
    assert spec.name == f"Wan2.1 of 1 blocks, width 256 ({name})"


def test_what_is_not_wan_is_refused_with_what_to_load():
    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="This MODEL is Linear, not WAN. Load Wan2.1-T2V"):
        pack("nodes.host.denoiser").read_spec(other)
    for net in (torch.nn.Linear(2, 2), SimpleNamespace(z_dim=48), None):
        with pytest.raises(ValueError, match="This VAE is not WAN 2.1's.* it has class .* Load wan_2.1_vae"):
            pack("nodes.host.vae").check_vae(SimpleNamespace(first_stage_model=net), latents("21"))


def latents(version):
    return getattr(pack("smra_core.wan.spec"), f"LATENTS_{version}")


@pytest.mark.parametrize("own, other", [("21", "22"), ("22", "21")])
def test_each_latent_space_takes_its_own_vae_alone(own, other):
    from comfy.ldm.wan import vae, vae2_2

    small = dict(z_dim=latents(own).channels, temperal_downsample=[False, True, True])
    net = vae.WanVAE(dim=8, **small) if own == "21" else vae2_2.WanVAE(dim=8, dec_dim=8, **small)
    check, holder = pack("nodes.host.vae").check_vae, SimpleNamespace(first_stage_model=net)
    check(holder, latents(own))
    with pytest.raises(ValueError, match=f"Load {latents(other).vae_file}"):
        check(holder, latents(other))


VAE = dict(dim=8, z_dim=16, temperal_downsample=[False, True, True])


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(z_dim=48), "channels of latents 48 instead of 16"),
        (dict(image_channels=4), "channels of pixels in 4 instead of 3"),
        (dict(conv_out_channels=12), "channels of pixels out 12 instead of 3"),
        (dict(image_channels=4, conv_out_channels=4), "pixels in 4 instead of 3, channels of pixels out 4"),
        (dict(temperal_downsample=[False, False, False]), "frames a latent 1 instead of 4"),
        (
            dict(dim_mult=[1, 2, 4, 4, 4], temperal_downsample=[False, True, True, False]),
            "pixels a latent 16",
        ),
    ],
)
def test_a_vae_of_other_channels_or_strides_is_refused_by_both_nodes_before_anything_is_encoded(
    changes, told, nodes, graph, monkeypatch
):
    from comfy.ldm.wan.vae import WanVAE
    from training_graph import train_motion, train_subject

    lacking = changes.keys() - inspect.signature(WanVAE).parameters.keys()
    if lacking:
        pytest.skip(f"WanVAE of this version of ComfyUI takes no {', '.join(sorted(lacking))}.")
    check = pack("nodes.host.vae").check_vae
    check(SimpleNamespace(first_stage_model=WanVAE(**VAE)), latents("21"))
    other = SimpleNamespace(first_stage_model=WanVAE(**VAE | changes))  # which cannot encode
    for train in (train_subject, train_motion):
        with pytest.raises(ValueError, match=told):
            train(nodes, graph, vae=other)


def test_a_block_that_is_not_there_is_refused_before_anything_is_loaded(core):
    check = pack("smra_core.training.model_fit").check_fit
    check(core.Subject(align_block=29), core.spec)
    with pytest.raises(ValueError, match="align_block is 30, but this model has blocks 0 to 29"):
        check(core.Subject(align_block=30), core.spec)
    check(core.Subject(align_block=30, sura_weight=0.0), core.spec)
    with pytest.raises(ValueError, match="not a multiple of 16"):
        check(core.Subject(width=500), core.spec)
