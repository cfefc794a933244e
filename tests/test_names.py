"""Names: near misses, a user's own objects, and what a user may write for a part."""

import sys
import textwrap

import pytest
from ml_collections import ConfigDict

from dml_jax import UserError, distances, names
from dml_jax.distances import Distance

TABLE = {"alpha": 1, "beta": 2}


def test_a_table_is_looked_up():
    assert names.resolve("thing", TABLE, "beta") == 2
    with pytest.raises(UserError, match=r"unknown thing 'alpa'; did you mean 'alpha'\?"):
        names.resolve("thing", TABLE, "alpa")
    with pytest.raises(UserError, match="unknown thing 'zzz'; accepted: alpha, beta"):
        names.resolve("thing", TABLE, "zzz")
    with pytest.raises(UserError, match="unknown thing 3; accepted: alpha, beta"):
        names.resolve("thing", TABLE, 3)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text("class Inner:\n    value = 5\n\nnumber = 4\n")
    (tmp_path / "broken.py").write_text(
        textwrap.dedent("""
            import no_such_package_anywhere
        """)
    )
    (tmp_path / "mistyped.py").write_text("x = 1\n\ndef f(:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "of_mine"
    for name in ("of_mine", "broken"):
        sys.modules.pop(name, None)


def test_objects_of_the_user_s_own(module):
    assert names.resolve("thing", TABLE, f"{module}:number") == 4
    assert names.resolve("thing", TABLE, f"{module}:Inner.value") == 5
    with pytest.raises(UserError, match="did you mean 'number'"):
        names.resolve("thing", TABLE, f"{module}:numbr")
    with pytest.raises(UserError, match="there is no module 'no_such_module'"):
        names.resolve("thing", TABLE, "no_such_module:x")
    # A module that is there and imports one that is not is a defect of it: its line is named.
    says = r"thing 'broken:x': the module broken fails .*broken\.py, line 2: .*no_such_package_anywhere"
    with pytest.raises(UserError, match=says) as raised:
        names.resolve("thing", TABLE, "broken:x")
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)
    with pytest.raises(UserError, match=r"mistyped\.py, line 3: SyntaxError"):
        names.resolve("thing", TABLE, "mistyped:x")


def test_what_a_user_may_write_for_a_part():
    build = lambda spec: names.build("distance", distances.get, Distance, spec)
    want = distances.lp(power=2)
    for spec in (want, {"name": "lp", "power": 2}, ConfigDict({"name": "lp", "power": 2})):
        assert build(spec) == want
    assert build("lp") == distances.lp()
    assert build(None) is None
    for wrong in (3, ["lp"], {"power": 2}):
        with pytest.raises(UserError, match="accepted: a name, a dict with a 'name', a distance"):
            build(wrong)
