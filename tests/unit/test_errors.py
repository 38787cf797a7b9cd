"""Commands end with one sentence and an exit code for what a user can mend."""

import pytest

from c2ser_jax.errors import UserError, run_command


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("the list is empty"), 2, "error: the list is empty\n"),
        (PermissionError(13, "Permission denied", "/x/a.json"), 2, "error: /x/a.json: Permission"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(capsys, error, code, words):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    printed = capsys.readouterr().err
    assert ended.value.code == code and printed.startswith(words) and printed.count("\n") == 1


def test_other_errors_keep_their_traceback():
    def main(argv):
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run_command(main)
