"""Names of the values on a grid's axes, as people read them."""


def name_value(axis: str, value: str) -> str:
    """Return a value with the name of its axis if it is a number, which says nothing alone."""
    is_number = value.replace(".", "", 1).removeprefix("-").isdecimal()
    return f"{axis} {value}" if is_number else value
