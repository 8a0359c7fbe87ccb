import os
import unicodedata

import pytest

from smra_core.data.metadata_table import (
    CAPTION_COLUMNS,
    PICTURE_COLUMNS,
    VIDEO_COLUMNS,
    find_file_inside,
    find_table,
    read_caption_beside,
    read_table,
)


@pytest.fixture
def folder(tmp_path):
    """A data set's folder with one file, inside a folder with a secret beside it."""
    home = tmp_path / "set"
    (home / "images").mkdir(parents=True)
    (home / "images" / "00.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return home


def table(folder, text, encoding="utf-8"):
    (folder / "metadata.csv").write_bytes(text.encode(encoding))
    return folder / "metadata.csv"


def test_cells_are_read_by_column_whatever_the_case_and_order(folder):
    rows = read_table(
        table(folder, 'Prompt,VIDEO\n"a dog, running ",images/00.png\n\nb,x.png\n'), VIDEO_COLUMNS
    )
    assert [row.get_cell(CAPTION_COLUMNS) for row in rows] == ["a dog, running", "b"]
    assert rows[0].find_file(VIDEO_COLUMNS) == folder / "images" / "00.png"
    assert [row.line for row in rows] == [2, 4]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(folder, encoding):
    (row,) = read_table(table(folder, "image,prompt\r\n00.png,ein Hündchen\r\n", encoding), PICTURE_COLUMNS)
    assert row.cells == {"image": "00.png", "prompt": "ein Hündchen"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"metadata.csv has the columns \[\]; it needs at least one of \['image'"),
        ("picture,prompt\na,b\n", r"columns \['picture', 'prompt'\]; it needs at least one of"),
        (
            "image;prompt\na;b\n",
            r"columns \['image;prompt'\]; it needs at least one of .*separated by commas",
        ),
        ("image,image\na,b\n", "each column once"),
        ("image,prompt\n", "metadata.csv has a header and no rows. Add one row per file"),
        ("image,prompt\na.png,a dog, running\n", "line 2 has 3 cells under 2 columns. Put quotes around"),
        ('image,prompt\n"a.png,b\n', "metadata.csv is not a comma-separated table"),
    ],
)
def test_a_malformed_table_is_named_with_the_way_out(folder, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(table(folder, text), PICTURE_COLUMNS)


@pytest.mark.parametrize(
    "encoding, where", [("latin-1", "byte"), ("cp1252", "byte"), ("gbk", "byte"), ("utf-16-le", "character")]
)
def test_a_table_that_is_not_utf8_is_named(folder, encoding, where):
    text = "image,prompt\na.png,小狗\n" if encoding == "gbk" else "image,prompt\na.png,Hund\n"
    text = text if encoding in ("gbk", "utf-16-le") else text.replace("Hund", "Hündchen")
    path = table(folder, text, encoding)
    with pytest.raises(ValueError, match=rf"metadata.csv is not UTF-8 text \({where} .*Save it as UTF-8"):
        read_table(path, PICTURE_COLUMNS)


@pytest.mark.parametrize("name", ["images/00.png", "set/images/00.png", "images\\00.png", "./images/00.png"])
def test_a_file_is_found_from_its_folder_and_from_the_parent(folder, name):
    assert find_file_inside(folder, name, "x").resolve() == (folder / "images" / "00.png").resolve()


def test_the_folders_own_file_comes_before_the_parents_meaning(folder):
    (folder / "set").mkdir()
    (folder / "set" / "a.png").write_bytes(b"inner")
    (folder / "a.png").write_bytes(b"outer")
    assert find_file_inside(folder, "set/a.png", "x").read_bytes() == b"inner"


@pytest.mark.parametrize("name", ["../secret.png", "images/../../secret.png", "secret.png"])
def test_a_file_outside_the_folder_is_refused(folder, name):
    with pytest.raises(ValueError, match=r"table names '.*secret.png', which leads out of .*set"):
        find_file_inside(folder, name, "table")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_leads_outside_is_refused_and_one_inside_keeps_its_name(folder):
    (folder / "out.png").symlink_to(folder.parent / "secret.png")
    (folder / "in.png").symlink_to(folder / "images" / "00.png")
    with pytest.raises(ValueError, match="'out.png', which leads out of"):
        find_file_inside(folder, "out.png", "table")
    assert find_file_inside(folder, "in.png", "table").name == "in.png"


@pytest.mark.parametrize("name", ["/etc/passwd", "C:\\a.png", "\\\\server\\a.png"])
def test_an_absolute_path_is_refused(folder, name):
    with pytest.raises(ValueError, match="an absolute path. Write it relative to"):
        find_file_inside(folder, name, "table")


@pytest.mark.parametrize("name", ["none.png", "images", "a\0b", "x" * 5000, "\ud800"])
def test_what_is_not_there_is_named(folder, name):
    with pytest.raises(ValueError, match="there is no such file in .*set. Add the file or correct the name"):
        find_file_inside(folder, name, "table")


def test_a_row_knows_which_file_it_is_about(folder):
    (row,) = read_table(table(folder, "video\nset/images/00.png\n"), VIDEO_COLUMNS)
    assert row.is_about(VIDEO_COLUMNS, folder / "images" / "00.png")
    assert not row.is_about(VIDEO_COLUMNS, folder.parent / "secret.png")


def test_a_table_is_given_as_itself_or_as_its_folder(folder):
    assert find_table(folder) is None
    path = table(folder, "image\n")
    assert find_table(folder) == path and find_table(path) == path
    assert find_table(folder / "images" / "00.png") is None


def test_a_caption_beside_is_on_one_line(folder):
    picture = folder / "images" / "00.png"
    assert read_caption_beside(folder, picture) == ""
    picture.with_suffix(".txt").write_text("a sks dog,\n  running \n")
    assert read_caption_beside(folder, picture) == "a sks dog, running"


def test_a_caption_that_is_not_utf8_is_named(folder):
    picture = folder / "images" / "00.png"
    picture.with_suffix(".txt").write_bytes("ein Hündchen".encode("latin-1"))
    with pytest.raises(ValueError, match=r"00.txt is not UTF-8 text \(byte 5 is 0xfc\). Save it as UTF-8"):
        read_caption_beside(folder, picture)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_text_with_a_byte_order_mark_is_read_in_its_encoding(folder, encoding):
    picture = folder / "images" / "00.png"
    picture.with_suffix(".txt").write_bytes("ein Hündchen".encode(encoding))
    assert read_caption_beside(folder, picture) == "ein Hündchen"


@pytest.mark.parametrize("name", ["00.TXT", "00.caption"])
def test_captions_are_found_under_other_endings(folder, name):
    (folder / "images" / name).write_text("a sks dog")
    assert read_caption_beside(folder, folder / "images" / "00.png") == "a sks dog"


@pytest.mark.parametrize("written, asked", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accented_names_are_found_in_either_normal_form(folder, written, asked):
    stem = "Hündchen"
    (folder / unicodedata.normalize(written, f"{stem}.png")).write_bytes(b"x")
    (folder / unicodedata.normalize(written, f"{stem}.txt")).write_text("a sks dog")
    found = find_file_inside(folder, unicodedata.normalize(asked, f"{stem}.png"), "a table")
    assert found.is_file()
    assert read_caption_beside(folder, folder / unicodedata.normalize(asked, f"{stem}.png")) == "a sks dog"


def test_a_name_in_other_letter_case_is_found_unless_the_exact_one_is_there(folder):
    (folder / "images" / "A.PNG").write_bytes(b"x")
    assert find_file_inside(folder, "Images/a.png", "a table").samefile(folder / "images" / "A.PNG")
    (folder / "images" / "a.png").write_bytes(b"y")
    assert find_file_inside(folder, "images/a.png", "a table").name == "a.png"
