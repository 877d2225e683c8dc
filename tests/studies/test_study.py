import pickle

import fake_study
import pytest

from scorecraft.studies import registry
from scorecraft.studies.study import Claim, Contender, Scale, Study, StudyError, World


def test_a_study_needs_one_method_and_one_baseline():
    with pytest.raises(ValueError, match="exactly one contender as method, got \\[\\]"):
        fake_study.variant(contenders=(Contender("old", "old", "baseline"), Contender("new", "new")))


def test_a_study_needs_eight_seeds_at_its_desk():
    with pytest.raises(ValueError, match="at least 8 desk seeds, got 7"):
        fake_study.variant(scales=(Scale("smoke", 1), Scale("desk", 7)))


def test_a_study_needs_both_scales():
    with pytest.raises(ValueError, match="scales smoke and desk"):
        fake_study.variant(scales=(Scale("desk", 8),))


def test_claims_name_things_that_exist_and_meet():
    with pytest.raises(StudyError, match="has no metric `speed`: expected one of accuracy, cost"):
        fake_study.variant(claim=Claim("Faster.", metric="speed", margin=1))
    with pytest.raises(ValueError, match="new and truth never meet in second"):
        fake_study.variant(further_claims=(Claim("?", "accuracy", 0.0, baseline="truth", world="second"),))


def test_names_are_fit_for_files():
    with pytest.raises(ValueError, match="lower-case words"):
        World("Two words", "two words")


def test_settings_are_frozen_and_travel():
    contender = Contender("a", "A", settings={"x": 1})
    with pytest.raises(TypeError):
        contender.settings["x"] = 2
    for thing in (contender, World("w", "W", settings={"y": 2}), Scale("smoke", 1, {"z": 3})):
        assert pickle.loads(pickle.dumps(thing)) == thing  # noqa: S301


@pytest.mark.parametrize("slug", registry.slugs())
def test_every_registered_study_can_be_found(slug):
    study = registry.find(slug)
    assert isinstance(study, Study)
    assert study.slug == slug
    assert registry.find(slug.replace("_", "-").upper()) is study


def test_an_unknown_study_is_one_line_with_the_nearest_name():
    with pytest.raises(StudyError, match=r"^no study is named `multi-similarty`: did you mean `multi_similarity`\?$"):
        registry.find("multi-similarty")
    with pytest.raises(StudyError, match=", ".join(registry.slugs())):
        registry.find("xxxxxxxx")
