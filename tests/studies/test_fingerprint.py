import textwrap

import fake_study
import pytest

from scorecraft.studies import fingerprint as room
from scorecraft.studies.fingerprint import differences, fingerprint, source_hashes


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A little package in place of the real one: `write(**files)` makes its modules."""
    monkeypatch.setattr(room, "_ROOT", tmp_path)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path = path.with_name("__init__.py") if path.stem == "init" else path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    return write


def test_follows_imports_wherever_they_stand(package):
    package(
        a="import torch\nfrom scorecraft.b import x\n\ndef late():\n    import scorecraft.c.d\n",
        b="from . import e\n",
        c__d="from ..f import y\n",
        e="",
        f="",
        unused="",
    )
    assert list(source_hashes("scorecraft.a")) == [f"scorecraft.{name}" for name in ("a", "b", "c.d", "e", "f")]


def test_takes_the_whole_of_a_package_that_hides_its_imports(package):
    package(
        a="from scorecraft.lazy import Thing\n",
        lazy__init="def __getattr__(name): ...\n",
        lazy__one="from scorecraft.two import x\n",
        two="",
    )
    assert {"scorecraft.lazy.one", "scorecraft.two"} <= source_hashes("scorecraft.a").keys()


def test_notices_a_change_far_away(package):
    package(a="from scorecraft import b\n", b="from scorecraft import c\n", c="x = 1\n")
    before = source_hashes("scorecraft.a")
    package(c="x = 2\n")
    after = source_hashes("scorecraft.a")
    assert {name for name in after if before[name] != after[name]} == {"scorecraft.c"}


def test_covers_the_study_and_what_it_uses_but_not_the_machinery_around_it():
    code = fingerprint(fake_study.STUDY, fake_study.STUDY.scales[0])["code"]
    assert {"fake_study", "scorecraft.core.paper", "scorecraft.studies.study"} <= code.keys()
    assert not {"scorecraft.studies.runner", "scorecraft.studies.report"} & code.keys()


def test_says_what_differs():
    scale = fake_study.STUDY.scales[0]
    current = fingerprint(fake_study.STUDY, scale)
    assert differences(current, current) == []
    assert len(differences({}, current)) == sum(len(parts) for parts in current.values())
