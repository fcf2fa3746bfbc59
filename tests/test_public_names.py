"""The names that `import lqray` offers: they are there, and cost nothing before they are used."""

import subprocess
import sys

import pytest

import lqray


def test_importing_lqray_imports_nothing_heavy_and_no_room_of_its_own():
    code = (
        "import sys, lqray; dir(lqray)\n"
        "assert not {'torch', 'ray', 'mlflow', 'pandas', 'numpy', 'click', 'yaml'} & set(sys.modules)\n"
        "assert not [name for name in sys.modules if name.startswith('lqray.')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_where_the_table_says_and_is_listed():
    for name in lqray.__all__:
        assert getattr(lqray, name) is not None
        assert name in dir(lqray)
        assert getattr(lqray, name) is getattr(lqray, name)


def test_another_name_is_an_attribute_error_that_names_those_there_are():
    with pytest.raises(AttributeError, match="has no attribute 'quantise'; public names: .*ExperimentError"):
        lqray.quantise  # noqa: B018
    assert not hasattr(lqray, "quantise")


def test_rooms_are_still_found_by_their_own_names():
    from lqray import experiment

    assert experiment.__name__ == "lqray.experiment"
