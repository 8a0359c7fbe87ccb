"""Names of values on a grid's axes."""

import pytest

from smra_core.evaluation.axis_name import name_value


@pytest.mark.parametrize("value", ["0", "-0.5", "12"])
def test_a_number_bears_the_name_of_its_axis(value):
    assert name_value("strength", value) == f"strength {value}"


@pytest.mark.parametrize("value", ["dog", "1.2.3", "", "dog_50"])
def test_a_name_stands_alone(value):
    assert name_value("subject", value) == value
