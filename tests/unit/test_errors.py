"""Commands end with one sentence and an exit code for what a user can mend."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from c2ser_jax.errors import UserError, run_command, some_of

ROOT = Path(__file__).resolve().parents[2]


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


def sentences(path):
    """(line, last literal) of every `UserError` that a file raises with a text."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
            last = (
                node.args[0].values[-1] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            )
            if isinstance(last, ast.Constant):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", last.value


def test_sentences_end_alike_without_a_full_stop():
    found = [s for top in ("c2ser_jax", "conversions") for p in (ROOT / top).rglob("*.py")
             for s in sentences(p)]  # fmt: skip
    assert len(found) > 100
    assert [place for place, text in found if text.endswith(".")] == []


def test_a_sentence_names_a_few_of_many():
    assert some_of(["a", "b"]) == "a, b" and some_of(list("abcdef"), 4) == "a, b, c, d and 2 more"
    assert some_of(["x\ny", "z" * 200]) == "x?y, " + "z" * 160


def test_a_reader_that_has_enough_ends_a_command_quietly():
    program = "from c2ser_jax.errors import run_command\nrun_command(lambda _: print('x' * 10**6))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
    process.stderr.close()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError(32, "Broken")])
def test_other_errors_keep_their_traceback(error):
    """So does a pipe that breaks between processes while stdout is read."""

    def main(argv):
        raise error

    with pytest.raises(OSError, match="Input/output|Broken"):
        run_command(main)
