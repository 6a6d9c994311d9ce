"""Template sets: what their names stand for, and what is said where a name is none."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import run

from outclass import Guard, UsageError, load_encoder
from outclass.encoders.toy import ToyEncoder
from outclass.words.classes import ClassSet
from outclass.words.prompts import DEFAULT_TEMPLATES, TEMPLATE_SETS, check_templates, encode_ensembles


def test_the_sets():
    assert list(TEMPLATE_SETS) == ["photo", "general", "csp"]
    assert TEMPLATE_SETS["photo"] == DEFAULT_TEMPLATES
    assert len(TEMPLATE_SETS["general"]) == 30
    assert len(TEMPLATE_SETS["csp"]) == 8
    for templates in TEMPLATE_SETS.values():
        assert all(template.count("{}") == 1 for template in templates)
        assert len({template.casefold() for template in templates}) == len(templates)


def test_no_name_of_a_set_is_a_template():
    assert not any("{}" in name for name in TEMPLATE_SETS)


@pytest.mark.parametrize("name", list(TEMPLATE_SETS))
def test_a_name_stands_for_its_templates(name):
    assert check_templates(name) == check_templates([name]) == TEMPLATE_SETS[name]


def test_names_and_templates_mix_and_nothing_counts_twice():
    mixed = check_templates(["photo", "a drawing of a {}", "general", "a drawing of a {}"])
    assert mixed[:2] == ("a photo of a {}", "a drawing of a {}")
    assert len(mixed) == 31
    assert set(mixed) == {"a drawing of a {}", *TEMPLATE_SETS["general"]}


@pytest.mark.parametrize("unknown", ["generel", "General", "clip80", "a photo of a", "{} and {}", ""])
def test_what_is_neither_a_set_nor_a_template_is_refused_with_the_names(unknown):
    for templates in (unknown, ["photo", unknown]):
        with pytest.raises(UsageError, match=r"needs exactly one \{\}.*name of a set: photo, general, csp"):
            check_templates(templates)


@pytest.mark.parametrize("bad", [[], (), None, 3, [None]])
def test_other_things_are_refused(bad):
    with pytest.raises(UsageError, match="template"):
        check_templates(bad)


def test_a_class_is_the_mean_of_its_unit_vectors_made_unit_again(lite):
    made = ClassSet.build(["cat"], lite, "csp")
    texts = [template.replace("{}", "cat") for template in TEMPLATE_SETS["csp"]]
    mean = lite.encode_texts(texts).mean(axis=0)
    assert made.templates == TEMPLATE_SETS["csp"]
    np.testing.assert_allclose(made.vectors[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_the_order_of_templates_changes_nothing(lite):
    texts = [template.replace("{}", "cat") for template in TEMPLATE_SETS["general"]]
    forward, backward = encode_ensembles([texts, texts[::-1]], lite)
    np.testing.assert_allclose(forward, backward, atol=1e-6)


def test_a_guard_takes_a_set_keeps_its_templates_and_adds_classes_with_them(tmp_path):
    guard = Guard(["red"], "toy", "max_logit", templates="general")
    guard.add_classes(["blue"])
    both = Guard(["red", "blue"], "toy", "max_logit", templates="general")
    np.testing.assert_array_equal(guard.class_set.vectors, both.class_set.vectors)
    guard.save(tmp_path / "a.guard")
    assert Guard.load(tmp_path / "a.guard").class_set.templates == TEMPLATE_SETS["general"]


def test_the_command_line_takes_a_set(photos):
    given = ("scan", photos, "--classes", "red,blue", "--encoder", "toy", "--negatives", "none", "--template")
    done = run(*given, "csp")
    assert done.exit_code == 0, done.output
    assert "red" in done.output
    assert run(*given, "generel").exit_code != 0


def test_every_encoder_gives_unit_rows_so_that_the_order_of_averaging_is_one():
    vectors = load_encoder("toy").encode_texts(["a photo of a red", "blue"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


class Lengths(ToyEncoder):
    """The toy with text vectors of unlike lengths: a text that starts with "the" counts ten times."""

    def encode_raw_texts(self, texts):
        factor = np.array([10.0 if text.startswith("the") else 1.0 for text in texts], np.float32)
        return self.encode_texts(texts) * factor[:, None]


def test_the_ensembling_order_is_kept_in_the_guard_and_used_for_later_classes(tmp_path):
    templates = ("the {}", "a {}")
    guards = {order: Guard("red,a thing", Lengths(), templates=templates, ensemble=order) for order in ("unit", "raw")}
    one, other = (guard.class_set.vectors[1] for guard in guards.values())
    assert one @ other < 0.99, "the longer text weighs more"
    nearly = Lengths().encode_texts(["the a thing"])[0]
    assert other @ nearly > one @ nearly
    guards["raw"].add_classes("odd thing")
    guards["raw"].save(tmp_path / "a")
    again = Guard.load(tmp_path / "a", Lengths())
    assert again.class_set.order == "raw"
    whole = Guard("red,a thing,odd thing", Lengths(), templates=templates, ensemble="raw")
    np.testing.assert_allclose(again.class_set.vectors, whole.class_set.vectors, atol=1e-6)


def test_an_encoder_that_gives_unit_texts_cannot_average_raw_ones():
    with pytest.raises(UsageError, match=r"'raw'.*'toy'.*'unit'"):
        Guard("red,blue", "toy", ensemble="raw")
