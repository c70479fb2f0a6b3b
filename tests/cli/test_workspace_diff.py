"""The diff of a directory."""

from __future__ import annotations

from sterna.cli.workspace_diff import MAX_FILE_BYTES, snapshot, unified_diff


def test_added_removed_changed_and_binary(tmp_path):
    (tmp_path / "gone").write_text("x\n")
    (tmp_path / "same").write_text("same\n")
    (tmp_path / "edit").write_text("a\nb")
    (tmp_path / "bin").write_bytes(b"\0\1")
    before = snapshot(tmp_path)
    (tmp_path / "gone").unlink()
    (tmp_path / "edit").write_text("a\nc")
    (tmp_path / "bin").write_bytes(b"\0\2")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "new").write_text("n\n")
    diff = unified_diff(before, snapshot(tmp_path))
    assert "Binary files a/bin and b/bin differ\n" in diff
    assert "-b\n\\ No newline at end of file\n+c\n\\ No newline at end of file\n" in diff
    assert "--- a/gone\n+++ /dev/null\n" in diff
    assert "--- /dev/null\n+++ b/sub/new\n" in diff
    assert "same" not in diff


def test_caches_links_and_large_files_are_left_out(tmp_path):
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_bytes(b"x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "large").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    assert snapshot(tmp_path) == {}
