"""Texts for the commands on a real, tiny model, and the one line that an error is."""

TEXTS = ["the cat sat", "the cat sat on the mat", "", "the cat sat", "another text € entirely"]


def one_line(result, *expected, status=2):
    """Check that a command ended with a status and one line, with these parts in it."""
    code, _, err = result
    assert code == status, err
    assert err.count("\n") == 1, err
    for part in ("lastword: ", *expected):
        assert part in err
