"""What tests build their inputs with; here the least of it: the checkout's root, tables, and what an error must say."""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def table(writer_of, stem, values):
    """Writes STEM.ark and STEM.scp with a writer of io.tables or io.posterior; the rspecifier of the latter."""
    with writer_of(f"ark,scp:{stem}.ark,{stem}.scp") as writer:
        for utt, value in values.items():
            writer.write(utt, value)
    return f"scp:{stem}.scp"


def refused(call, *words):
    """The call ends in a UserError, one line that has all of these words."""
    import pytest

    from essence_kd.io.errors import UserError

    with pytest.raises(UserError) as error:
        call()
    for word in words:
        assert str(word) in str(error.value), f"{word} is not in: {error.value}"
    assert "\n" not in str(error.value)
