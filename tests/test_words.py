"""Class lists in, text vectors out; what cannot be meant is refused with a reason."""

from __future__ import annotations

import contextlib
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outclass import Guard, UsageError, load_encoder
from outclass.words.classes import ClassName, ClassSet, parse_classes
from outclass.words.prompts import encode_ensembles


class Counting:
    """The toy encoder that remembers every text."""

    def __init__(self):
        self.toy = load_encoder("toy")
        self.info, self.texts = self.toy.info, []

    def encode_texts(self, texts):
        self.texts += texts
        return self.toy.encode_texts(texts)

    def encode_images(self, pixels):
        return self.toy.encode_images(pixels)


def names(classes):
    return [one.name for one in parse_classes(classes)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", ["cat"]),
        ("cat,dog,car", ["cat", "dog", "car"]),
        (" cat , polar bear ,car ", ["cat", "polar bear", "car"]),
        ('"salt, pepper",dog', ["salt, pepper", "dog"]),
        ('cat, "salt, pepper"', ["cat", "salt, pepper"]),
        ('"a ""quoted"" word",b', ['a "quoted" word', "b"]),
        ("cup of coffee,AC/DC", ["cup of coffee", "AC/DC"]),
        ("it's,rock & roll,#1,50 %", ["it's", "rock & roll", "#1", "50 %"]),
        ("café,ÄÖÜ", ["café", "ÄÖÜ"]),
    ],
)
def test_a_comma_list_is_read_as_csv(text, expected):
    assert names(text) == expected


def test_plain_names_of_a_comma_list_have_no_grammar():
    assert parse_classes("cat | kitty @ fluffy") == (ClassName("cat | kitty @ fluffy"),)


def test_names_with_commas_survive_in_an_iterable():
    assert names(["a, b", "c"]) == ["a, b", "c"]
    assert names(iter(("a", "b"))) == ["a", "b"]


def test_a_long_comma_list_is_no_file_name():
    many = [f"class {row}" for row in range(2000)]
    assert names(",".join(many)) == many
    assert names("x" * 3000) == ["x" * 3000]


@given(
    st.lists(st.text("abcdefghij ,\"';|@", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=6, unique=True)
)
def test_any_names_written_as_csv_come_back(wanted):
    import csv
    import io

    line = io.StringIO()
    csv.writer(line, lineterminator="", quoting=csv.QUOTE_ALL).writerow(wanted)
    assert names(line.getvalue() + ",zzz") == [*wanted, "zzz"]


@pytest.mark.parametrize("bad", ["", " ", ",", "cat,,dog", "cat,", [], [""], [" "], ["cat", ""], (), "\n"])
def test_missing_names_are_refused(bad, tmp_path, monkeypatch):
    (tmp_path / "a-folder").mkdir()  # must not be taken for a class
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        parse_classes(bad)


@pytest.mark.parametrize("bad", [3, None, [3], [None], [b"cat"], object()])
def test_what_is_no_text_is_refused(bad):
    with pytest.raises(UsageError):
        parse_classes(bad)


@pytest.mark.parametrize(
    "bad",
    [
        "cat,dog,cat", "cat,Cat", "STRASSE,straße",
        ["café", unicodedata.normalize("NFD", "café")], ["ﬁre", "fire"], ["ｃａｔ", "cat"], ["cat ", " cat"],
    ],
)  # fmt: skip
def test_names_equal_after_folding_are_refused_by_name(bad):
    with pytest.raises(UsageError, match="twice"):
        parse_classes(bad)


@pytest.mark.parametrize("bad", ["cat\ndog", 'a\r\n"b', "cat\n"])
def test_a_line_break_in_a_comma_list_is_refused_or_read_but_never_a_crash(bad):
    with contextlib.suppress(UsageError):
        assert all("\n" not in name for name in names(bad))


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_a_file_has_names_synonyms_attributes_and_comments(tmp_path):
    file = write(
        tmp_path / "classes.txt",
        "\ufeff# pets\r\ncat | kitty; tomcat @ fluffy; black\r\n\r\n  dog  \r\n  # more\r\ncar@red\r\nbird|",
    )
    expected = (
        ClassName("cat", ("kitty", "tomcat"), ("fluffy", "black")),
        ClassName("dog"),
        ClassName("car", (), ("red",)),
        ClassName("bird"),
    )
    assert parse_classes(file) == parse_classes(str(file)) == expected


def test_a_file_may_hold_commas_and_any_letters(tmp_path):
    assert names(write(tmp_path / "a.TXT", "salt, pepper\n猫\n")) == ["salt, pepper", "猫"]


@pytest.mark.parametrize("text", ["", "\n\n", "# only\n", "cat\ncat\n", "| kitty\n", "@ red\n", "cat\nCAT\n"])
def test_a_file_without_good_names_is_refused(tmp_path, text):
    with pytest.raises(UsageError):
        parse_classes(write(tmp_path / "classes.txt", text))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_that_is_no_utf8_is_refused(tmp_path, encoding):
    with pytest.raises(UsageError, match="UTF-8"):
        parse_classes(write(tmp_path / "classes.txt", "café\nÄ", encoding))


@pytest.mark.parametrize("missing", ["classes.txt", "no/such/folder", "./nothing"])
def test_a_missing_file_or_folder_is_refused_and_no_class_name(missing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=missing.split("/")[-1]):
        parse_classes(missing)


def test_a_folder_gives_its_sub_folders(tmp_path):
    for name in ("dog", "polar_bear", ".git", "cat"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert names(tmp_path) == names(str(tmp_path)) == ["cat", "dog", "polar bear"]


def test_a_folder_without_sub_folders_is_refused(tmp_path):
    with pytest.raises(UsageError, match="sub-folders"):
        parse_classes(tmp_path)


@pytest.mark.parametrize(
    "word", ["猫", "ネコ", "ﾈｺ", "고양이", "кот", "γάτα", "قطة", "חתול", "แมว", "बिल्ली", "பூனை", "কুকুর", "კატა", "კ"]
)
@pytest.mark.parametrize("encoder", ["toy", "lite"])
def test_a_script_the_encoder_does_not_know_is_refused_with_one_that_does(word, encoder, request):
    known = request.getfixturevalue("lite") if encoder == "lite" else load_encoder("toy")
    with pytest.raises(UsageError, match=r"--encoder [\w-]+/") as caught:
        ClassSet.build(["dog", word], known)
    assert word in str(caught.value)
    assert encoder in str(caught.value)


def test_a_foreign_synonym_or_attribute_is_refused_too():
    for one in (ClassName("cat", ("猫",)), ClassName("cat", (), ("黒",))):
        with pytest.raises(UsageError, match="--encoder"):
            ClassSet.build([one], load_encoder("toy"))


@pytest.mark.parametrize(
    "word", ["café", "naïve", "Übermut", "α particle", "№ 5", "100 µm", "😀", "x²", "rock ’n’ roll"]
)
def test_english_with_signs_and_borrowed_letters_is_taken(word):
    assert ClassSet.build([word], load_encoder("toy")).names == (word,)


def test_every_text_of_a_class_is_template_attribute_word():
    texts = ClassName("cat", ("kitty",), ("black", "old")).texts(["a {}", "{}!"])
    assert sorted(texts) == sorted(
        f"{before}{attribute} {word}{after}"
        for before, after in (("a ", ""), ("", "!"))
        for attribute in ("black", "old")
        for word in ("cat", "kitty")
    )


def test_a_class_vector_is_the_normalised_mean_of_the_unit_vectors():
    encoder = load_encoder("toy")
    texts = ["a red cat", "a nice kitty", "blue"]
    mean = encoder.encode_texts(texts).astype(np.float64).mean(axis=0)
    ours = encode_ensembles([texts, ["red"]], encoder)
    np.testing.assert_allclose(ours[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(ours[1], encoder.encode_texts(["red"])[0], atol=1e-6)
    assert ours.dtype == np.float32


@pytest.mark.parametrize("bad", [[], "", "a photo", "a {} of {}", "{name}", ["a {}", "b"], [3], 3])
def test_a_template_without_exactly_one_place_is_refused(bad):
    with pytest.raises(UsageError, match="template"):
        ClassSet.build(["cat"], load_encoder("toy"), bad)


def test_names_with_braces_are_put_in_as_they_are():
    assert ClassName("{}").texts(["a {} x"]) == ["a {} x"]
    assert ClassName("{0}").texts(["a {} x"]) == ["a {0} x"]


def test_the_default_template_is_a_photo_of_a():
    encoder = Counting()
    ClassSet.build("cat,dog", encoder)
    assert encoder.texts == ["a photo of a cat", "a photo of a dog"]


def test_adding_encodes_the_new_names_only():
    encoder = Counting()
    guard = Guard("red,blue", encoder)
    encoder.texts.clear()
    guard.add_classes("green")
    assert encoder.texts == ["a photo of a green"]
    assert guard.classes == ("red", "blue", "green")


def test_removing_encodes_nothing():
    encoder = Counting()
    guard = Guard("red,blue,green", encoder)
    encoder.texts.clear()
    guard.remove_classes("BLUE")
    assert encoder.texts == []
    assert guard.classes == ("red", "green")


def test_a_set_that_grew_equals_one_that_was_made_whole():
    encoder = load_encoder("toy")
    grown = ClassSet.build("red", encoder, ["a {}", "the {}"]).add("blue,green", encoder).remove("red")
    whole = ClassSet.build("blue,green", encoder, ["a {}", "the {}"])
    assert grown.names == whole.names
    np.testing.assert_allclose(grown.vectors, whole.vectors, atol=1e-6)


def test_adding_a_known_name_is_refused_and_changes_nothing():
    guard = Guard("red,blue", "toy")
    with pytest.raises(UsageError, match="twice"):
        guard.add_classes("Red")
    assert guard.classes == ("red", "blue")


@pytest.mark.parametrize("bad", ["pink", "red,blue", ["red", "blue"], "", []])
def test_removing_what_is_not_there_or_everything_is_refused(bad):
    guard = Guard("red,blue", "toy")
    with pytest.raises(UsageError):
        guard.remove_classes(bad)
    assert guard.classes == ("red", "blue")


def test_a_name_is_removed_however_its_accents_are_written():
    guard = Guard(["café", "red"], "toy")
    guard.remove_classes([unicodedata.normalize("NFD", "café")])
    assert guard.classes == ("red",)


def test_a_synonym_may_not_stand_for_two_classes(tmp_path):
    (tmp_path / "list.txt").write_text("cat | kitten; puss\nkitten\n", encoding="utf-8")
    with pytest.raises(UsageError, match="'kitten' is a class and also a synonym of 'cat'"):
        parse_classes(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("cat | Cat; puss\nkitten | puss\n", encoding="utf-8")
    assert [one.name for one in parse_classes(tmp_path / "list.txt")] == ["cat", "kitten"]
