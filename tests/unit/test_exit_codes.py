"""One table of exit codes: errors.py, `--help` and docs/cli.md say the same."""

import re
from pathlib import Path

from ckptfs.cli.exitcodes import exit_codes
from ckptfs.cli.main import make_parser
from ckptfs.errors import CkptfsError, error_classes

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def test_every_error_has_an_exit_code_of_its_own():
    codes = [cls.exit_code for cls in error_classes()]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 128 for code in codes)
    assert CkptfsError.exit_code == 1


def test_the_documentation_has_the_table_of_the_code():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    assert [(int(code), meaning) for code, meaning in rows] == [tuple(row) for row in exit_codes()]


def test_help_has_the_table_of_the_code():
    help_text = " ".join(make_parser().format_help().split())
    for code, meaning in exit_codes():
        assert f"{code} {meaning}" in help_text


def test_the_table_has_every_error_and_what_is_no_error():
    assert [row.code for row in exit_codes()] == [0, *(cls.exit_code for cls in error_classes()), 130, 141]
