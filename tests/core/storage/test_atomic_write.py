import errno
import os
import time

import pytest
from safetensors import SafetensorError

from smra_core.storage.atomic_write import write_atomically


def test_the_new_content_takes_the_old_ones_place_when_the_block_ends(tmp_path):
    target = tmp_path / "made" / "file.bin"
    for content in (b"first", b"second"):
        with write_atomically(target) as draft:
            draft.write_bytes(content)
            assert not target.exists() or target.read_bytes() == b"first"
        assert target.read_bytes() == content
    assert os.listdir(target.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path, error):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), write_atomically(target) as draft:
        draft.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.bin"]


def test_two_writers_of_one_file_have_drafts_of_their_own(tmp_path):
    with write_atomically(tmp_path / "a.mp4") as one, write_atomically(tmp_path / "a.mp4") as two:
        assert one != two and one.suffix == two.suffix == ".mp4"
        one.write_bytes(b"1")
        two.write_bytes(b"2")
    assert (tmp_path / "a.mp4").read_bytes() == b"1"  # the outer block ends last


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_a_written_file_has_the_rights_of_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with write_atomically(tmp_path / "file") as draft:
        draft.write_bytes(b"")
        draft.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path, error):
    target = tmp_path / "file.bin"
    with pytest.raises(OSError, match=r"file.bin cannot be written: no space is left.*Free some space"):
        with write_atomically(target) as draft:
            draft.write_bytes(b"half")
            raise error
    assert os.listdir(tmp_path) == []


def test_other_errors_of_safetensors_are_errors_of_the_disk_for_all_that_catch_those(tmp_path):
    with pytest.raises(OSError, match="file.bin cannot be written .read-only"):
        with write_atomically(tmp_path / "file.bin"):
            raise SafetensorError("read-only file system")


def test_what_a_kill_left_a_day_ago_is_deleted_and_another_writers_draft_is_not(tmp_path):
    old, new, other = (tmp_path / f".{name}.tmp.bin" for name in ("a[1].0123", "a[1].4567", "b.0123"))
    for draft in (old, new, other):
        draft.write_bytes(b"half")
    for draft in (old, other):
        os.utime(draft, (time.time() - 2 * 24 * 3600,) * 2)
    with write_atomically(tmp_path / "a[1].bin") as draft:
        draft.write_bytes(b"whole")
    assert sorted(os.listdir(tmp_path)) == sorted([new.name, other.name, "a[1].bin"])


def lock(monkeypatch, target, tries):
    """Refuse to replace a file so many times, as Windows does while another program holds it open."""
    real, refused = os.replace, []

    def replace(source, goal):
        if goal == target and len(refused) < tries:
            refused.append(goal)
            raise PermissionError(13, "Access is denied", str(goal))
        return real(source, goal)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return refused


def test_a_file_that_another_program_holds_for_a_moment_is_replaced_after_it(tmp_path, monkeypatch):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    refused = lock(monkeypatch, target, tries=3)
    with write_atomically(target) as draft:
        draft.write_bytes(b"new")
    assert target.read_bytes() == b"new" and len(refused) == 3


def test_a_file_that_stays_locked_is_left_and_the_new_content_kept_beside_it(tmp_path, monkeypatch):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    lock(monkeypatch, target, tries=99)
    with pytest.raises(OSError, match="another program holds it open") as caught:
        with write_atomically(target) as draft:
            draft.write_bytes(b"new")
    (kept,) = set(os.listdir(tmp_path)) - {"file.bin"}
    assert target.read_bytes() == b"old" and (tmp_path / kept).read_bytes() == b"new"
    assert kept in str(caught.value) and kept.endswith(".bin")
