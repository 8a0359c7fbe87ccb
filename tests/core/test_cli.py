"""The command line from files to files, on WAN models of random weights in both layouts."""

import contextlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from random_models import Sizes, write_random_dinov2, write_random_wan
from safetensors.torch import load_file, save_file

from smra_core import cli
from smra_core.commands import inspect, sample
from smra_core.data.video import read_video, write_video
from smra_core.encoders.dinov2_files import DinoV2Config
from smra_core.encoders.sea_raft import SeaRaft, save_sea_raft
from smra_core.encoders.sea_raft_config import SEA_RAFT_MINIATURE
from smra_core.lora.adapter import restrict
from smra_core.lora.plan import ALL_LAYERS, MOTION, SUBJECT
from smra_core.lora.reader import load_lora
from smra_core.standalone import output_file
from smra_core.standalone.model_files import WanFiles
from smra_core.training import motion as motion_training
from smra_core.training import subject as subject_training

SIDE, SMALL = 32, Sizes()
SIZE = ["--width", str(SIDE), "--height", str(SIDE)]
SHORT = ["--rank", "2", "--steps", "2", "--accumulate", "1", "--learning-rate", "0.05", *SIZE]
DINOV2 = DinoV2Config(width=24, depth=1, heads=2, hidden=48, gated=False, grid=2, registers=0)


def run(*arguments):
    """Run a command that must succeed; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main([str(argument) for argument in arguments]) == 0
    return printed.getvalue()


class World:
    """Models, encoders and data sets on disk."""

    def __init__(self, folder, sizes=SMALL):
        self.folder = folder
        self.wan = {}
        for layout in ("native", "diffusers"):
            (folder / layout).mkdir()
            self.wan[layout] = write_random_wan(folder / layout, sizes, layout)
        torch.manual_seed(1)
        self.dinov2, self.sea_raft = folder / "dinov2.safetensors", folder / "sea_raft.safetensors"
        write_random_dinov2(self.dinov2, DINOV2)
        save_sea_raft(SeaRaft(SEA_RAFT_MINIATURE), self.sea_raft, torch.float32)
        self.dog, self.walk = folder / "dog", folder / "video" / "walk"
        self._write_subject()
        self._write_motion()

    def _write_subject(self):
        (self.dog / "images").mkdir(parents=True)
        (self.dog / "masks").mkdir()
        Image.effect_noise((48, 40), 60).convert("RGB").save(self.dog / "images" / "00.png")
        Image.new("L", (48, 40), 255).save(self.dog / "masks" / "00.png")
        text = "video,mask,prompt\nimages/00.png,masks/00.png,A picture of sks dog\n"
        (self.dog / "metadata.csv").write_text(text)

    def _write_motion(self):
        picture = torch.rand(3, SIDE, SIDE)
        write_video(self.walk / "00.mp4", torch.stack([picture.roll(i, -1) for i in range(6)]), 16)
        (self.walk / "metadata.csv").write_text("video,prompt\nwalk/00.mp4,a person is vvt walking\n")

    def train_subject(self, out, layout="native", *options):
        out = ["--out", self.folder / out, "--dinov2", self.dinov2, *SHORT, *self.wan[layout], *options]
        return Path(run("train-subject", self.dog, *out).strip())

    def train_motion(self, out, layout="native", *options):
        out = ["--out", self.folder / out, "--frames", 5, *SHORT, *self.wan[layout], *options]
        return Path(run("train-motion", self.walk, "--sea-raft", self.sea_raft, *out).strip())

    def sample(self, name, *options):
        """Bytes of the video."""
        settings = ["--steps", 2, "--frames", 5, "--video", self.folder / name, *SIZE]
        run("sample", "a sks dog is vvt walking", *settings, *self.wan["native"], *options)
        return (self.folder / name).read_bytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def subject(world):
    return world.train_subject("out")


@pytest.fixture(scope="module")
def motion(world):
    return world.train_motion("out")


def test_training_writes_loras_of_the_papers_plans(subject, motion):
    for path, role, plan, caption, count in (
        (subject, "subject", SUBJECT, "A picture of sks dog", 10),
        (motion, "motion", MOTION, "a person is vvt walking", 12),
    ):
        loaded = load_lora(path)
        assert (loaded.metadata.purpose, loaded.metadata.plan) == (role, str(plan))
        assert loaded.metadata.captions == (caption,) and len(loaded.lora) == count
        assert all(pair.b.any() and plan.includes(name) for name, pair in loaded.lora.items())


def test_a_diffusers_folder_trains_to_the_same_loras_as_native_files(world, subject, motion):
    for native, other in (
        (subject, world.train_subject("other", "diffusers")),
        (motion, world.train_motion("other", "diffusers")),
    ):
        first, second = load_file(native), load_file(other)
        assert native != other and first.keys() == second.keys()
        for name in first:
            torch.testing.assert_close(first[name], second[name])


@pytest.fixture
def loads(monkeypatch):
    """List that gets the kind of each model that is loaded."""
    seen = []

    def watch(owner, name, kind):
        load = getattr(owner, name)

        def loading(*args):
            seen.append(kind)
            return load(*args)

        monkeypatch.setattr(owner, name, loading)

    for kind in ("denoiser", "codec", "text"):
        watch(WanFiles, f"load_{kind}", kind)
    watch(subject_training, "load_dinov2", "dinov2")
    watch(motion_training, "load_sea_raft", "sea_raft")
    return seen


def test_a_second_run_encodes_nothing(world, subject, motion, loads):
    cached = sorted((world.folder / "out" / "cache").iterdir())
    assert world.train_subject("out") == subject and world.train_motion("out") == motion
    assert loads == []
    assert world.train_subject("out", "native", "--seed", 1) != subject
    assert loads == ["denoiser"]
    loads.clear()
    assert world.train_motion("out", "native", "--seed", 1) != motion
    assert sorted(loads) == ["codec", "denoiser", "sea_raft"]  # to train through, not to encode
    assert sorted((world.folder / "out" / "cache").iterdir()) == cached


def test_an_objective_of_weight_zero_needs_no_encoder(world, loads):
    plain = ["--out", world.folder / "out", *SHORT, *world.wan["native"]]
    run("train-subject", world.dog, "--sura-weight", 0, *plain)
    run("train-motion", world.walk, "--mora-weight", 0, "--frames", 5, *plain)
    assert "dinov2" not in loads and "sea_raft" not in loads


def test_sampling_writes_a_video_that_the_loras_change(world, subject, motion):
    base = world.sample("base.mp4")
    both = ["--subject", subject, "--motion", motion]
    assert base == world.sample("off.mp4", *both, "--subject-strength", 0, "--motion-strength", 0)
    assert base != world.sample("on.mp4", *both)
    video = read_video(world.folder / "on.mp4", (SIDE, SIDE), 9)
    assert len(video.frames) == 5 and video.fps == 15


def test_a_plan_keeps_a_part_of_a_lora(world, subject):
    whole = world.sample("whole.mp4", "--subject", subject, "--subject-strength", 1)
    part = world.sample("part.mp4", "--subject", subject, "--subject-strength", 1, "--subject-plan", "ffn.0")
    assert whole != part
    with pytest.raises(ValueError, match="Plan v leaves none of the 10 modules of"):
        restrict(load_lora(subject).lora, ALL_LAYERS.parse("v"))


def test_inspect_says_what_is_in_a_file(subject):
    printed = run("inspect", subject)
    lines = [line.split() for line in printed.splitlines()]
    assert ["purpose", "subject"] in lines and ["rank", "2"] in lines and ["modules", "10"] in lines
    assert "q,k,ffn.0 (subject)" in printed
    assert [line[:2] for line in lines if line[:1] in (["q"], ["k"], ["ffn.0"])] == [
        ["q", "4"], ["k", "4"], ["ffn.0", "2"],
    ]  # fmt: skip


@pytest.mark.parametrize("dialect", ["comfyui", "diffusers", "kohya"])
def test_convert_keeps_every_weight(subject, tmp_path, dialect):
    run("convert", subject, tmp_path / "other.safetensors", "--to", dialect)
    before, after = load_lora(subject), load_lora(tmp_path / "other.safetensors")
    assert after.dialect.startswith(dialect) and after.metadata == before.metadata
    for name, pair in before.lora.items():
        torch.testing.assert_close(after.lora[name].delta(), pair.delta())


def fails(capsys, *arguments):
    """Run a command that must fail; return its one line of error."""
    assert cli.main([str(argument) for argument in arguments]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def test_bad_input_gives_one_line_that_names_it(world, tmp_path, capsys):
    wan = [*world.wan["native"], "--out", tmp_path]
    assert "nowhere.safetensors is not a file" in fails(capsys, "inspect", tmp_path / "nowhere.safetensors")
    assert "needs the weights of DINOv2" in fails(capsys, "train-subject", world.dog, *wan)
    assert "needs the weights of SEA-RAFT" in fails(capsys, "train-motion", world.walk, *wan)
    missing = fails(capsys, "train-motion", world.walk, "--sea-raft", tmp_path / "none.pth", *wan)
    assert "none.pth is not a file" in missing
    (tmp_path / "bare").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "bare" / "a.png")
    bare = ["train-subject", tmp_path / "bare", "--sura-weight", 0, *wan]
    assert "a.png has no caption" in fails(capsys, *bare)
    assert "first a.png. Give masks" in fails(capsys, *bare, "--caption", "a sks dog")
    assert "Device 'toaster' cannot be used" in fails(capsys, *bare, "--device", "toaster")


@pytest.mark.parametrize("error, code, said", [
    (KeyboardInterrupt(), 130, "Interrupted. Nothing was written."),
    (torch.OutOfMemoryError("Lower the frames"), 1, "error: Lower the frames"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: Out of memory. Lower the frames"),
    (RuntimeError("MPS backend out of memory"), 1, "error: Out of memory."),
    (ImportError("Install peft"), 1, "error: Install peft"),
    (MemoryError(), 1, "error: MemoryError"),
])  # fmt: skip
def test_an_interrupt_and_full_memory_end_without_a_traceback(monkeypatch, capsys, error, code, said):
    def fail(*args):
        raise error

    monkeypatch.setattr(inspect, "load_lora", fail)
    assert cli.main(["inspect", "x"]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command, said", [
    (["train-subject", "x"], "continue from the last saved step"),
    (["train-motion", "x"], "continue from the last saved step"),
    (["sample", "x"], "Nothing was written. The same command starts from the beginning."),
    (["window-error", "x"], "Nothing was written."), (["demo"], "continues the trainings"),
    (["probe-layers", "x", "a dog"], "Nothing was written."),
])  # fmt: skip
def test_an_interrupt_says_what_is_true_of_the_command(command, said):
    assert said in cli.build_parser().parse_args(command).after_interrupt


SAMPLE_BADLY = [
    (["--fps", 0], "fps must be above 0 and at most 1000, got 0"),
    (["--fps", 5000], "fps must be above 0 and at most 1000, got 5000"),
    (["--shift", 0], "shift must be above 0, got 0.0"),
    (["--guidance", "nan"], "guidance must be finite, got nan"),
    (["--steps", 0], "steps must be at least 1, got 0"),
    (["--seed", 2**70], "seed must be at least"),
    (
        ["--video", "FOLDER/x.gif"],
        "x.gif does not end with .mp4 or .m4v, which says what is",
    ),
    (["--video", "FOLDER/video"], "video.mp4."),
    (["--video", "FOLDER/folder.mp4"], "folder.mp4 is a folder. Give the path of a file"),
    (["--video", "FOLDER/file/x.mp4"], "x.mp4 cannot be written ("),
    (["--video", "FOLDER/" + "x" * 240 + ".mp4"], "cannot be written ("),
    (["--out", "FOLDER/file"], "cannot be used as a folder for results ("),
    (["--cache", "FOLDER/file"], "cannot be used as a folder for results ("),
]


@pytest.mark.parametrize("option, said", SAMPLE_BADLY)
def test_sampling_refuses_before_it_loads_anything(world, loads, tmp_path, capsys, option, said):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    option = [str(part).replace("FOLDER", str(tmp_path)) for part in option]
    video = ["--video", tmp_path / "video.mp4", "--out", tmp_path / "out"]
    assert said in fails(capsys, "sample", "a dog", *video, *world.wan["native"], *SIZE, *option)
    assert loads == [] and sorted(path.name for path in tmp_path.rglob("*mp4")) == ["folder.mp4"]


def test_a_video_that_fits_no_longer_is_written_elsewhere(world, tmp_path, capsys, monkeypatch):
    target, write = tmp_path / "video.mp4", sample.write_video

    def fill_the_disk(path, frames, fps):
        if Path(path) == target:
            raise OSError(28, "No space left on device")
        write(path, frames, fps)

    monkeypatch.setattr(sample, "write_video", fill_the_disk)
    settings = ["--steps", 1, "--frames", 5, "--video", target, "--out", world.folder / "out", *SIZE]
    printed = run("sample", "a dog", *settings, *world.wan["native"]).strip()
    assert Path(printed).name == "video.mp4" and Path(printed).is_file() and not target.exists()
    Path(printed).unlink()


def test_a_disk_without_room_for_the_video_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(output_file.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    output_file.check_output_file(tmp_path / "a.mp4", (".mp4",), 10**6)
    with pytest.raises(ValueError, match="has 1.0 MB free, and the file may take 2.0 MB"):
        output_file.check_output_file(tmp_path / "a.mp4", (".mp4",), 2 * 10**6)


def test_what_is_there_already_stays_as_it_is_when_its_path_is_tried(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"old")
    output_file.check_output_file(file, (".mp4",))
    output_file.check_output_folder(tmp_path / "new" / "folder")
    assert file.read_bytes() == b"old" and [*(tmp_path / "new" / "folder").iterdir()] == []


@pytest.mark.parametrize("target, to, said", [
    ("out", "kohya", "out does not end with .safetensors or .sft"),
    ("file/x.safetensors", "comfyui", "x.safetensors cannot be written ("),
    ("folder.safetensors", "diffusers", "folder.safetensors is a folder."),
    ("file", "peft", "cannot be used as a folder for results"),
    ("x.safetensors", "peft", "PEFT keeps an adapter in a folder"),
])  # fmt: skip
def test_converting_refuses_a_target_before_it_reads(subject, tmp_path, capsys, target, to, said):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    assert said in fails(capsys, "convert", subject, tmp_path / target, "--to", to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]


@pytest.mark.parametrize("level", ["nan", "-1", "inf"])
def test_noise_of_a_window_error_is_a_number(tmp_path, capsys, level):
    assert "--noise must be finite" in fails(capsys, "window-error", tmp_path, "--noise", "0.1", f"{level}")


def test_windows_are_compared_in_pixels_and_with_sea_raft_in_the_gradient_of_the_lora(world):
    options = ["--frames", 5, "--window", 1, "--rank", 2, *SIZE, *world.wan["native"]]
    pixels = run("window-error", world.walk, *options)
    both = run("window-error", world.walk, "--sea-raft", world.sea_raft, *options)
    assert both.startswith(pixels) and "Gradient" not in pixels
    # The clip has one latent after the first, so that its one window is the whole clip.
    assert both.splitlines()[-1].split() == ["4", "1.000", "1.00", "1.000", "1.00"]


TRAIN_BADLY = [
    ("train-motion", ["--width", 100], "Size 100x32 is not a multiple of 16. Use 96x32."),
    ("train-motion", ["--rank", -1], "rank must be at least 1, got -1"),
    ("train-motion", ["--mora-weight", "nan"], "mora_weight must be finite and at least 0, got nan"),
    ("train-motion", ["--plan", "v,o@10:20"], "this model has blocks 0 to 1"),
    (
        "train-motion",
        ["--tiny-decoder", "nowhere.pth"],
        "nowhere.pth is not a file. Give the weights of",
    ),
    ("train-motion", ["--name", "../.."], "has no letter or digit"),
    ("train-motion", ["--seed", 2**70], "seed must be at least"),
    ("train-subject", ["--align-block", 99], "align_block is 99, but this model has blocks 0 to 1"),
    ("train-subject", ["--align-block", -1], "align_block must be at least 0, got -1"),
    ("train-subject", ["--steps", 0], "steps must be at least 1, got 0"),
    ("train-subject", ["--learning-rate", "inf"], "learning_rate must be finite and above 0, got inf"),
    ("train-subject", ["--sam", "nowhere.pth"], "nowhere.pth is not a file. Give the weights of SAM"),
    ("train-subject", ["--out", __file__], "cannot be used as a folder for results"),
]


@pytest.mark.parametrize("command, option, said", TRAIN_BADLY)
def test_training_refuses_before_it_loads_anything(world, loads, tmp_path, capsys, command, option, said):
    data = {"train-motion": world.walk, "train-subject": world.dog}[command]
    encoders = {"train-motion": ["--sea-raft", world.sea_raft], "train-subject": ["--dinov2", world.dinov2]}
    arguments = [*encoders[command], "--out", tmp_path, *SHORT, *world.wan["native"], *option]
    assert said in fails(capsys, command, data, *arguments)
    assert loads == []


def test_a_run_stays_in_the_runs_folder(world, tmp_path):
    plain = ["--sura-weight", 0, *SHORT, *world.wan["native"]]
    run("train-subject", world.dog, "--out", tmp_path / "out", "--name", "../../../a/b", *plain)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    assert folder.name.startswith("subject-_________a_b-")


@pytest.mark.parametrize("command", [["inspect", "LORA"], ["convert", "--help"]])
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_letters_that_a_console_lacks_are_escaped(tmp_path, monkeypatch, command, encoding):
    file = tmp_path / "犬.safetensors"
    pair = {"lora_A.weight": torch.ones(2, 8), "lora_B.weight": torch.ones(8, 2)}
    captions = {"smrabooth.captions": '["一只 sks 狗"]'}
    save_file({f"diffusion_model.blocks.0.self_attn.q.{k}": t for k, t in pair.items()}, file, captions)
    written = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", written)
    arguments = [str(file) if part == "LORA" else part for part in command]
    try:
        assert cli.main(arguments) == 0
    except SystemExit as end:
        assert end.code == 0
    written.flush()
    assert written.buffer.getvalue()


def test_a_probe_of_layers_prints_a_plan_that_sampling_takes_and_draws_the_chart(world, subject):
    picture = world.folder / "layers.png"
    options = ["--picture", picture, "--steps", 1, "--frames", 5, "--keep", 0.6, *SIZE, *world.wan["native"]]
    lines = run("probe-layers", subject, "a picture of sks dog", *options).splitlines()
    plan = next(line.removeprefix("plan: ") for line in lines if line.startswith("plan: "))
    assert [line.split()[0] for line in lines[1:4]] == ["q", "k", "ffn.0"] and lines[-1] == str(picture)
    assert Image.open(picture).size[0] > 100
    assert world.sample("probed.mp4", "--subject", subject, "--subject-plan", plan)


def test_a_probe_of_layers_refuses_an_impossible_share_and_file_before_a_model_is_loaded(loads, capsys):
    assert "keep must be above 0 and at most 1" in fails(capsys, "probe-layers", "x", "a dog", "--keep", 0)
    assert ".png" in fails(capsys, "probe-layers", "x", "a dog", "--picture", "a.txt")
    assert not loads


def test_sampling_with_a_settled_t_point_draws_its_switch_and_refuses_a_picture(world, subject, capsys):
    world.sample("settled.mp4", "--subject", subject, "--t-point", "settled")
    assert (world.folder / "settled_t_point.png").stat().st_size > 1000
    assert "5 frames" in fails(capsys, "sample", "a dog", "--t-point", "settled", "--frames", 1)
