"""The frame of the command line: help, errors in one line, exit statuses, completion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click
import pytest

import convserve
from convserve import cli
from convserve.cli import _common
from convserve.errors import ShapeError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process: (exit status, standard output, standard error)."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


@pytest.fixture
def with_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[click.Command], None]:
    """Puts a command of the test's own in the place of `inspect`."""

    def put(command: click.Command) -> None:
        module = ModuleType("convserve.cli.inspect")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "convserve.cli.inspect", module)

    return put


def failing(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


def test_help_lists_every_command_and_explains_the_exit_status(run: Run) -> None:
    status, out, err = run("--help")
    assert status == 0 and err == ""
    for name in ("demo", "train", "eval", "inspect", "serve", "classify", "bench"):
        assert f"\n  {name} " in out
    for line in ("0    success", "1    an error", "2    wrong usage", "130  interrupted"):
        assert line in out
    assert "_CONVSERVE_COMPLETE=bash_source" in out
    assert run("-h") == (0, out, "")


@pytest.mark.parametrize("name", cli._COMMANDS)
def test_each_command_has_help(run: Run, name: str) -> None:
    command = import_module(f"convserve.cli.{name}").command
    assert isinstance(command, click.Command) and command.help
    status, out, _ = run(name, "--help")
    assert status == 0 and out.startswith(f"Usage: convserve {name} ")
    assert all(len(line) <= 100 for line in out.splitlines())
    assert out.count("--debug") == 1


def test_help_and_completion_import_no_command() -> None:
    code = (
        "import sys\n"
        "from convserve.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.startswith('convserve')))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    modules = ["convserve", "convserve.cli", "convserve.cli._common", "convserve.errors"]
    assert out.splitlines()[-1] == str(modules)


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"convserve {convserve.__version__}\n", "")


def test_wrong_usage_is_one_line_and_status_2(run: Run) -> None:
    for args, message in (
        (["nonsense"], "No such command 'nonsense' (try 'convserve --help')"),
        (["--nonsense"], "No such option '--nonsense' (try 'convserve --help')"),
        (["inspect"], "Missing argument 'MODEL' (try 'convserve inspect --help')"),
        (["inspect", "a", "b"], "unexpected extra argument (b) (try 'convserve inspect --help')"),
    ):
        status, out, err = run(*args)
        assert (status, out) == (2, "")
        assert err.startswith("convserve: error: ") and err.endswith(f"{message}\n")
        assert err.count("\n") == 1


def test_no_command_shows_the_help(run: Run) -> None:
    status, out, err = run()
    assert "Usage: convserve" in out + err and status in (0, 2)  # click 8.1 and later ones


@pytest.mark.parametrize(
    "error, message",
    [
        (ShapeError("layer 'conv1':\n too  wide"), "layer 'conv1': too wide"),
        (FileNotFoundError(2, "No such file", "x"), "[Errno 2] No such file: 'x'"),
        (click.FileError("x", "unreadable"), "Could not open file 'x': unreadable"),
        (ShapeError("\x1b[31mred\x07"), r"\x1b[31mred\x07"),
        (ZeroDivisionError("by 0"), "unexpected ZeroDivisionError: by 0 (--debug shows where)"),
        (EOFError("over"), "unexpected EOFError: over (--debug shows where)"),
        (MemoryError(), "unexpected MemoryError (--debug shows where)"),
    ],
)
def test_an_error_is_one_line_and_status_1(
    run: Run,
    with_command: Callable[[click.Command], None],
    error: Exception,
    message: str,
) -> None:
    with_command(failing(error))
    status, out, err = run("inspect")
    assert (status, out, err.lstrip("\n")) == (1, "", f"convserve: error: {message}\n")


def test_the_clients_errors_are_expected_too(
    run: Run, with_command: Callable[[click.Command], None]
) -> None:
    errors = import_module("convserve_client.errors")

    class Refused(errors.ConvserveClientError):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            Exception.__init__(self, "the server is not there")

        def __str__(self) -> str:
            return "the server is not there"

    with_command(failing(Refused()))
    assert run("inspect") == (1, "", "convserve: error: the server is not there\n")


@pytest.mark.parametrize("args", [["--debug", "inspect"], ["inspect", "--debug"]])
def test_debug_shows_the_traceback(
    run: Run, with_command: Callable[[click.Command], None], args: list[str]
) -> None:
    with_command(failing(ShapeError("too wide")))
    status, _, err = run(*args)
    assert status == 1 and "Traceback (most recent call last)" in err
    assert err.endswith("convserve: error: too wide\n")


def test_an_interrupt_is_status_130(
    run: Run, with_command: Callable[[click.Command], None]
) -> None:
    with_command(failing(KeyboardInterrupt()))
    status, out, err = run("inspect")
    assert (status, out, err.strip()) == (130, "", "convserve: interrupted")


def test_a_command_chooses_its_status(
    run: Run, with_command: Callable[[click.Command], None]
) -> None:
    for ending, status in ((click.exceptions.Exit(1), 1), (SystemExit(3), 3)):
        with_command(failing(ending))
        assert run("inspect") == (status, "", "")
    for value, status in ((1, 1), (0, 0), (None, 0), (True, 0), ("text", 0)):
        with_command(click.Command("inspect", callback=lambda value=value: value))
        assert run("inspect") == (status, "", "")


def test_shared_options(run: Run, with_command: Callable[[click.Command], None]) -> None:
    @click.command()
    @_common.model_argument
    @_common.threads_option
    def command(model: Path, threads: int | None) -> None:
        click.echo(f"{model!r} {threads}")

    with_command(command)
    assert run("inspect", "m.npz") == (0, f"{Path('m.npz')!r} None\n", "")
    assert run("inspect", "m.npz", "--threads", "2")[1].endswith("2\n")
    status, _, err = run("inspect", "m.npz", "--threads", "0")
    assert status == 2 and "'--threads'" in err


def program(*args: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "convserve", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,  # type: ignore[call-overload]
    )  # fmt: skip


def test_python_dash_m() -> None:
    with program("--version") as process:
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, f"convserve {convserve.__version__}\n", "")


def test_completion_lists_commands() -> None:
    environment = {
        **os.environ,
        "_CONVSERVE_COMPLETE": "bash_complete",
        "COMP_WORDS": "convserve in",
        "COMP_CWORD": "1",
    }
    with program(env=environment) as process:
        out, _ = process.communicate(timeout=300)
    assert out == "plain,inspect\n"


def test_a_reader_that_has_gone_is_no_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-m", "convserve", "--help"],
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300,
    )  # fmt: skip
    os.close(writing)
    assert (process.returncode, process.stderr) == (1, "")


def test_ctrl_c_in_a_real_process() -> None:
    code = (
        "import sys, types, time, click\n"
        "from convserve.cli import main\n"
        "def wait():\n"
        "    print('started', flush=True)\n"
        "    time.sleep(60)\n"
        "module = types.ModuleType('convserve.cli.inspect')\n"
        "module.command = click.Command('inspect', callback=wait)\n"
        "sys.modules['convserve.cli.inspect'] = module\n"
        "main(['inspect'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.strip() == "convserve: interrupted"


def test_printable_escapes_what_would_steer_a_terminal() -> None:
    assert _common.printable("é × ü\u00a0日本") == "é × ü\u00a0日本"
    assert _common.printable("a\x1b]0;title\x07\r\nb") == r"a\x1b]0;title\x07\r\nb"
    assert _common.printable(3) == "3"
