"""Files as `Root` reads them."""

import resource

from pxsched.root import MOST_BYTES, Root


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def test_a_file_without_end_is_none_that_can_be_read(tmp_path):
    before_mib = peak_mib()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 34)
    (tmp_path / "endless").symlink_to("/dev/zero")
    root = Root(str(tmp_path))
    assert root.read_bytes("large") is None
    assert root.read("endless") is None
    assert peak_mib() - before_mib < 2 * (MOST_BYTES >> 20)


def test_the_largest_file_there_is_can_be_read(tmp_path):
    (tmp_path / "interrupts").write_bytes(b"0" * MOST_BYTES)
    assert len(Root(str(tmp_path)).read_bytes("interrupts") or b"") == MOST_BYTES
