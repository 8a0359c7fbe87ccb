"""Pictures, masks and clips of the graph: what is accepted, what is told, and what the artist sees of it."""

import pytest
import torch
from PIL import Image
from random_wan import pack

import nodes as host_nodes

SIZE = (64, 64)
SIDE = 96


@pytest.fixture
def nodes():
    return pack("nodes").NODE_CLASS_MAPPINGS


@pytest.fixture
def input_folder(tmp_path, monkeypatch):
    import folder_paths

    folder = tmp_path / "input"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(folder))
    return folder


def pictures(count=1, channels=3):
    return 0.1 + 0.8 * torch.rand(count, SIDE, SIDE, channels, generator=torch.Generator().manual_seed(0))


def box(count=1, side=SIDE):
    masks = torch.zeros(count, side, side)
    masks[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    return masks


def make_samples(*batches, masks=(), as_clip=False, **options):
    module = pack("nodes.training.subject_samples")
    captions = [f"a ball {i}" for i in range(module.count_samples(batches, as_clip))]
    return module.make_subject_samples(batches, masks, captions, SIZE, as_clip, **options)


def make_set(images, masks=None):
    return make_samples(images, masks=() if masks is None else [masks])


def load(folder, image):
    """The IMAGE and MASK that ComfyUI's own Load Image gives."""
    image.save(folder / "a.png")
    return host_nodes.LoadImage().load_image("a.png")[:2]


def test_the_stand_in_mask_of_load_image_counts_as_none(input_folder):
    images, masks = load(input_folder, Image.new("RGB", (SIDE, SIDE), (200, 60, 20)))
    assert masks.shape == (1, 64, 64)
    (picture,), notes = make_set(images, masks)
    assert picture.mask_px is None and "the masks are black all over, which counts as none" in notes


def test_the_inverted_mask_of_load_image_is_warned_of(input_folder):
    cut_out = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    cut_out.paste((200, 60, 20, 255), (30, 30, 60, 60))
    images, masks = load(input_folder, cut_out)
    (picture,), notes = make_set(images, masks)
    assert picture.mask_px.mean() > 0.85
    assert any("Is it inverted?" in note and "connect InvertMask" in note for note in notes)
    (picture,), notes = make_set(images, 1 - masks)
    assert picture.mask_px.mean() < 0.15 and not any("inverted" in note for note in notes)


@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 64, 64), (1, SIDE, SIDE)])
def test_black_masks_of_any_number_and_size_count_as_none(shape):
    found, _ = make_set(pictures(2), torch.zeros(shape))
    assert [picture.mask_px for picture in found] == [None, None]


def test_smaller_masks_of_the_same_shape_are_resized_and_told():
    (full,), _ = make_set(pictures(), box())
    (small,), notes = make_set(pictures(), box(side=48))
    assert torch.equal(full.mask_px, small.mask_px) and "masks are resized from 48x48 to 96x96" in notes
    with pytest.raises(
        ValueError, match="1 masks of 48x32 for 1 pictures of 96x96. Give one mask of the same shape"
    ):
        make_set(pictures(), torch.ones(1, 32, 48))
    with pytest.raises(ValueError, match="1 masks of 96x96 for 3 pictures of 96x96"):
        make_set(pictures(3), box())


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (1, SIDE, SIDE), (1, 1, SIDE, SIDE)])
def test_masks_of_every_layout_are_understood(shape):
    (picture,), notes = make_set(pictures(), box().reshape(shape))
    assert picture.mask_px.sum() == 32 * 32
    assert "picture 1: its mask covers 25 % of the picture and touches no edge" in notes


def test_alpha_of_pictures_serves_as_the_mask_where_there_is_no_other():
    images = pictures(2, channels=4)
    images[..., 3] = 1
    images[0, ..., 3] = box()[0]
    found, notes = make_set(images)
    assert found[0].mask_px.sum() == 32 * 32 and found[1].mask_px is None
    assert (found[0].pixels[:, 0, 0] == 1).all()
    assert "transparency serves as the mask of pictures without another" in notes
    masks = torch.zeros(2, SIDE, SIDE)
    masks[0, :24] = 1
    found, _ = make_set(images, masks)
    assert found[0].mask_px[0, :16].all() and not found[0].mask_px[0, 16:].any()


@pytest.mark.parametrize(
    "images, message",
    [
        (pictures() * 255, "divide by 255"),
        (pictures() * float("nan"), "no numbers"),
        (pictures(channels=1), "The pictures have 1 channels"),
        (torch.zeros(1, SIDE, SIDE, 3), "Picture 1 of 1 is black all over"),
    ],
)
def test_what_is_no_picture_is_refused_before_training(images, message):
    with pytest.raises(ValueError, match=message):
        make_set(images)


def test_a_mask_connected_as_a_picture_is_told():
    _, notes = make_set(box()[..., None].expand(-1, -1, -1, 3))
    assert notes == ["picture 1: holds black and white alone. If it is a mask, connect it to masks"]


def make_clips(*batches, masks=(), **options):
    captions = ["a ball is vvt"] * len(batches)
    return pack("nodes.training.motion_clips").make_motion_clips(batches, masks, captions, 5, SIZE, **options)


def make_clip(frames):
    return make_clips(frames)[0]


def test_frames_are_checked_as_pictures_are():
    assert len(make_clip(pictures(6)).frames) == 5
    assert "the clip's 5 frames are all the same" in make_clip(pictures(1).repeat(5, 1, 1, 1)).notes[0]
    assert "every picture of 96x96" not in make_clip(pictures(5)).notes
    with pytest.raises(ValueError, match="Frame 2 of 5 holds values that are no numbers"):
        frames = pictures(5)
        frames[1, 0, 0, 0] = float("nan")
        make_clip(frames)
    with pytest.raises(ValueError, match="The frames have 1 channels"):
        make_clip(pictures(5, channels=1))
    with pytest.raises(ValueError, match="5 frames are all black"):
        make_clip(torch.zeros(5, SIDE, SIDE, 3))


def test_several_clips_are_named_and_each_may_have_a_mask_and_its_own_shape():
    wide = pictures(9)[:, : SIDE // 2]
    clips = make_clips(pictures(5), wide, masks=[box(5), box(9)[:, : SIDE // 2]])
    assert [clip.name for clip in clips] == ["clip 1", "clip 2"]
    assert all(
        clip.frames.shape == (5, 3, *SIZE[::-1]) == (5, 3, *clip.exclude_px.shape[2:]) for clip in clips
    )
    own = make_clips(pictures(5), wide, own_multiple=16)
    assert [tuple(clip.frames.shape[2:]) for clip in own] == [(64, 64), (32, 80)]
    notes = pack("nodes.training.motion_clips").list_notes(clips)
    assert notes[0] == f"clip 1: 5 frames of {SIZE[0]}x{SIZE[1]}, 'a ball is vvt'"
    assert "clip 1: its mask leaves out 25 % of the clip" in notes


def test_one_mask_serves_all_frames_and_masks_that_do_not_fit_are_refused():
    (clip,) = make_clips(pictures(6), masks=[box()])
    assert clip.exclude_px.shape[0] == 5 and clip.exclude_px.mean() == 0.25
    assert "one mask is that of all frames" in clip.notes
    assert make_clips(pictures(6), masks=[torch.zeros(1, 64, 64)])[0].exclude_px is None
    with pytest.raises(ValueError, match="3 masks of 96x96 for 6 frames of 96x96"):
        make_clips(pictures(6), masks=[box(3)])
    with pytest.raises(ValueError, match="exclude holds 2 MASK batches for 3 clips"):
        make_clips(*[pictures(5)] * 3, masks=[box()] * 2)


def test_images_are_one_clip_where_that_is_asked_for():
    (clip,), notes = make_samples(pictures(6), masks=[box(6)], as_clip=True)
    assert clip.frames.shape == (5, 3, *SIZE[::-1]) and clip.masks_px.mean() == 0.25
    assert clip.name == "clip" and "of 6 frames 5 are used (WAN needs 4n+1)" in notes
    for masks in ((), [torch.zeros(1, 64, 64)]):
        with pytest.raises(ValueError, match="masks of the clip show no subject.*SAM 3"):
            make_samples(pictures(6), masks=masks, as_clip=True)


def test_a_list_holds_several_clips_with_a_mask_batch_each_and_pictures_beside_them():
    low = box(9)
    low[:, : SIDE // 2] = 0
    batches = pictures(5), pictures(1), pictures(9)
    samples, notes = make_samples(*batches, masks=[box(5), torch.zeros(1, 64, 64), low], as_clip=True)
    assert [sample.name for sample in samples] == ["clip 1", "picture 2", "clip 3"]
    assert [sample.caption for sample in samples] == ["a ball 0", "a ball 1", "a ball 2"]
    assert [len(sample.frames) for sample in samples] == [5, 1, 9]
    assert samples[0].masks_px.mean() == 0.25 and samples[2].masks_px.mean() == 0.125
    assert samples[1].mask_px is None  # SAM finds it
    assert "clip 3: its masks cover 12 % of the clip" in notes
    assert "batch 2: the masks are black all over, which counts as none" in notes
    pictures_alone, _ = make_samples(pictures(2), pictures(1), masks=[box(2), box()])
    assert [sample.name for sample in pictures_alone] == ["picture 1", "picture 2", "picture 3"]


def test_each_batch_of_a_list_may_keep_its_own_shape_and_needs_its_own_masks():
    wide, half = pictures(5)[:, : SIDE // 2], box(5)[:, : SIDE // 2]
    samples, _ = make_samples(pictures(5), wide, masks=[box(5), half], as_clip=True, own_multiple=16)
    assert [tuple(sample.frames.shape[2:]) for sample in samples] == [(64, 64), (32, 80)]
    assert all(sample.masks_px.shape[2:] == sample.frames.shape[2:] for sample in samples)
    with pytest.raises(ValueError, match="1 MASK batches for 2 IMAGE batches. Give one for each"):
        make_samples(pictures(5), wide, masks=[box(5)], as_clip=True)
    with pytest.raises(ValueError, match="masks of the clip 2 show no subject"):
        make_samples(pictures(5), wide, masks=[box(5), half * 0], as_clip=True)


def test_clips_of_different_sizes_are_shown_evenly():
    strip = pack("nodes.host.picture_strip")
    wide, half = pictures(9)[:, : SIDE // 2], box(9)[:, : SIDE // 2]
    samples, _ = make_samples(pictures(9), wide, masks=[box(9), half], as_clip=True, own_multiple=16)
    shown = strip.draw_masked_pictures(samples)
    assert shown.size == (5 * 64 + 5 * 80, 2 * 64)  # five frames of each, in their own shapes
    assert len(strip._draw_tiles(samples[0], 5)) == 5


def test_an_enlarged_picture_is_told():
    _, notes = pack("nodes.host.images").crop_images(pictures(), (192, 192))
    assert notes == ["every picture of 96x96 is enlarged 2 times to 192x192, which adds no detail"]


def test_pictures_and_masks_are_shown_on_the_node_before_training(monkeypatch):
    import comfy.utils

    shown = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, node_id=None: shown.append(preview)
    )
    found, _ = make_set(pictures(12), box(12))
    pack("nodes.host.picture_strip").show_masked_pictures(found)
    ((kind, picture, largest),) = shown
    assert kind == "JPEG" and picture.size == (10 * 64, 2 * 64) and largest == 640
    above, below = (picture.getpixel((0, y)) for y in (0, 64))
    assert below == pytest.approx([level / 4 for level in above], abs=1)  # outside of the mask
    assert picture.getpixel((32, 32)) == picture.getpixel((32, 96))


@pytest.mark.parametrize("node", ["SMRALoadSubjectFolder", "SMRALoadMotionClip"])
def test_a_linked_folder_has_a_constant_fingerprint(nodes, node):
    assert nodes[node].fingerprint_inputs(folder=None) == nodes[node].fingerprint_inputs(
        folder=None, caption=None
    )
    assert isinstance(nodes[node].fingerprint_inputs(folder=" "), str)


@pytest.mark.parametrize(
    "given, changed",
    [
        ("dog", "dog/masks/a.png"), ("dog", "dog/a.txt"), ("dog/metadata.csv", "dog/a.png"),
        ("walk.mp4", "walk.txt"),
        ("walk.mp4", "metadata.csv"), ("frames", "frames.txt"), ("frames/%04d.png", "frames/0003.png"),
        ("frames/0001.png", "frames/0003.png"),
    ],
)  # fmt: skip
def test_every_file_that_is_read_counts_as_changed(input_folder, nodes, given, changed):
    fingerprint = nodes["SMRALoadMotionClip"].fingerprint_inputs
    for name in ("dog/metadata.csv", "walk.mp4", "frames/0001.png", "other.txt"):
        (input_folder / name).parent.mkdir(exist_ok=True)
        (input_folder / name).write_bytes(b"x")
    before = fingerprint(folder=given)
    assert fingerprint(folder=given) == before
    (input_folder / "other.txt").write_bytes(b"other")
    assert fingerprint(folder=given) == before
    (input_folder / changed).parent.mkdir(exist_ok=True)
    (input_folder / changed).write_bytes(b"changed")
    assert fingerprint(folder=given) != before


def test_the_hint_for_an_empty_folder_can_be_followed(input_folder):
    resolve_input = pack("nodes.host.input_folder").resolve_input
    (input_folder / "my_dog").mkdir()
    for empty in ("", "  ", '""'):
        with pytest.raises(ValueError) as error:
            resolve_input(empty)
        hinted = str(error.value).rpartition("such as ")[2].rstrip(".")
        assert resolve_input(hinted).is_dir()
    for written in ("my_dog/", "'my_dog'", "input/my_dog", str(input_folder / "my_dog")):
        assert resolve_input(written).samefile(input_folder / "my_dog")
    (input_folder / "input").mkdir()
    assert resolve_input("input") == input_folder / "input"


@pytest.mark.parametrize("outside", [
    "/etc", "../secret", "my_dog/../../secret", "~", "/", "//server/share",
    "\\\\server\\share", "NUL", "my_dog/aux.txt",
])  # fmt: skip
def test_a_workflow_reads_nothing_outside_of_comfyuis_folders(input_folder, outside):
    (input_folder / "my_dog").mkdir()
    (input_folder.parent / "secret").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="is not read. Copy it into ComfyUI's input folder"):
        pack("nodes.host.input_folder").resolve_input(outside)


def test_a_link_that_the_owner_has_made_is_followed(input_folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("photos")
    (input_folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    assert pack("nodes.host.input_folder").resolve_input("linked").samefile(elsewhere)


class Clip:
    """Encodes every caption alike."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return [[torch.zeros(1, 3, 4096), {}]]


@pytest.mark.parametrize(
    "choice, first, fps",
    [
        ({}, [0, 2], 16),
        (dict(frame_rate="as they are"), [0, 1], 32),
        (dict(frame_rate="24 fps (TI2V-5B)"), [0, 1], 24),
    ],
)
def test_a_clip_is_read_at_the_rate_of_the_models_videos_or_as_it_is(input_folder, nodes, choice, first, fps):
    write_video = pack("smra_core.data.video").write_video

    levels = (32 + 16 * torch.arange(12)) / 255
    write_video(input_folder / "fast.mp4", levels[:, None, None, None].expand(12, 3, 64, 64), 32)
    (frames,), _, _, (rate,) = (
        nodes["SMRALoadMotionClip"]
        .execute(Clip(), "fast.mp4", "a ball is vvt", 5, 0, 1, 64, 64, **choice)
        .args
    )
    numbers = [round((frame.mean().item() * 255 - 32) / 16) for frame in frames]
    assert numbers[:2] == first and rate == fps


def test_all_clips_of_a_folder_are_lists(input_folder, nodes):
    write_video = pack("smra_core.data.video").write_video
    for name, width in (("a", 64), ("b", 128)):
        (input_folder / "slide").mkdir(exist_ok=True)
        write_video(input_folder / "slide" / f"{name}.mp4", torch.rand(6, 3, 64, width), 16)
        (input_folder / "slide" / f"{name}.txt").write_text(f"{name} is vvt sliding")
    values = (Clip(), "slide", "", 5, 0, 1, 64, 64)
    frames, positive, captions, rates = nodes["SMRALoadMotionClip"].execute(*values).args
    assert [tuple(clip.shape) for clip in frames] == [(5, 64, 64, 3)] * 2 and len(positive) == 2
    assert captions == ["a is vvt sliding", "b is vvt sliding"] and rates == [16, 16]
    own = nodes["SMRALoadMotionClip"].execute(*values, own_sizes=True).args[0]
    assert [tuple(clip.shape) for clip in own] == [(5, 64, 64, 3), (5, 32, 80, 3)]


def write_subject(folder):
    """A folder with two clips of different shapes, of which each has masks, and a picture without one."""
    write_video = pack("smra_core.data.video").write_video
    for name, width in (("a", 64), ("b", 128)):
        (folder / "masks" / name).mkdir(parents=True)
        write_video(folder / f"{name}.mp4", torch.rand(9, 3, 64, width), 16)
        for number in range(9):
            mask = Image.new("L", (width, 64))
            mask.paste(255, (0, 0, width // 2, 64))
            mask.save(folder / "masks" / name / f"{number:04}.png")
        (folder / f"{name}.txt").write_text(f"{name} sks ball")
    Image.new("RGB", (64, 64), "red").save(folder / "c.png")
    (folder / "c.txt").write_text("c sks ball")


def test_a_folder_of_clips_with_their_masks_are_lists_that_the_training_node_takes(input_folder, nodes):
    write_subject(input_folder / "ball")
    values = (Clip(), "ball", "", 5, 64, 64, "16 fps")
    images, masks, positive, captions = nodes["SMRALoadSubjectClips"].execute(*values, False).args
    assert [tuple(batch.shape) for batch in images] == [(1, 64, 64, 3), (5, 64, 64, 3), (5, 64, 64, 3)]
    assert [tuple(mask.shape) for mask in masks] == [(1, 64, 64), (5, 64, 64), (5, 64, 64)]
    assert [mask.mean().item() for mask in masks] == [0, 0.5, 0.5] and len(positive) == 3
    assert captions == ["c sks ball", "a sks ball", "b sks ball"]
    samples, _ = make_samples(*images, masks=masks, as_clip=True)
    assert [sample.name for sample in samples] == ["picture 1", "clip 2", "clip 3"]
    own = nodes["SMRALoadSubjectClips"].execute(*values, True).args[0]
    assert [tuple(batch.shape[1:3]) for batch in own] == [(64, 64), (64, 64), (32, 80)]
    assert nodes["SMRALoadSubjectClips"].fingerprint_inputs(folder="ball")


def test_masks_of_sam_are_mended_where_that_is_asked_for(nodes, monkeypatch):
    module = pack("nodes.segment_subject")
    mask_px = torch.zeros(1, 32, 32)
    mask_px[:, 8:24, 8:24] = 1
    mask_px[:, 15, 15], mask_px[:, 2, 2] = 0, 1  # a hole and a speck

    class Net:
        def to(self, device):
            return self

    monkeypatch.setattr(module, "load_sam", lambda path: Net())
    monkeypatch.setattr(module, "find_subject_mask", lambda net, picture, point: mask_px)

    def segment(**mending):
        return (
            nodes["SMRASegmentSubject"]
            .execute(torch.ones(1, 32, 32, 3), None, 0.5, 0.5, **mending)
            .args[0][0]
        )

    assert torch.equal(segment(), mask_px[0])
    assert segment(close_holes=2)[15, 15] == 1 and segment(close_holes=2)[2, 2] == 1
    assert segment(drop_specks=1)[2, 2] == 0
    assert 0 < segment(soften=2)[8, 16] < 1
