"""A changed class list costs what changed, and gives what the same list gives from the beginning."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from outclass import Guard
from outclass.words.negatives import mine

CLASSES = ["cat", "dog", "red car", "cup of coffee", "crane bird", "food", "sports equipment", "entity"]
WORDS = {"wordnet": None, "typed": ["unknown object", "landscape", "a street", "some text"]}


def encoded(change, lite):
    """The texts that a change hands to the encoder, sorted."""
    with patch.object(lite, "encode_texts", wraps=lite.encode_texts) as asked:
        change()
    return sorted(text for call in asked.call_args_list for text in call.args[0])


@pytest.mark.parametrize("negatives", WORDS.values(), ids=WORDS)
def test_only_new_names_are_encoded(lite, negatives):
    guard = Guard(CLASSES, encoder=lite, negatives=negatives)
    assert encoded(lambda: guard.add_classes(["bicycle"]), lite) == ["a photo of a bicycle"]
    assert encoded(lambda: guard.set_classes([*CLASSES[::-1], "bicycle", "horse"]), lite) == ["a photo of a horse"]
    assert encoded(lambda: guard.remove_classes("cat,horse"), lite) == []
    assert guard.classes == (*CLASSES[1:], "bicycle")


def test_a_changed_list_is_the_same_list_made_anew(lite):
    guard = Guard(CLASSES, encoder=lite)
    before = {leak.word for leak in guard.negatives.leaks.removed}
    guard.add_classes(["bicycle", "poodle skirt"])
    guard.remove_classes("dog,entity")
    after = {leak.word for leak in guard.negatives.leaks.removed}
    assert {"beagle", "tandem"} & before == {"beagle"}
    assert {"beagle", "tandem"} & after == {"tandem"}
    anew = Guard(guard.classes, encoder=lite)
    assert guard.negatives.names == anew.negatives.names
    assert guard.negatives.leaks.to_dict() == anew.negatives.leaks.to_dict()
    np.testing.assert_allclose(guard.class_set.vectors, anew.class_set.vectors, atol=1e-6)
    vectors = mine(guard.class_set, lite, share=0.01).vectors  # stand for images that are none of the classes
    np.testing.assert_allclose(guard.detector.score(vectors), anew.detector.score(vectors), atol=1e-5)
