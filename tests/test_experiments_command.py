"""The experiments' command lines: flags of one script alone, one line for what is refused."""

import pathlib
import subprocess
import sys

import pytest
from absl import flags

from experiments import command
from experiments.bench import memory
from experiments.mutations import __main__ as mutations
from experiments.oracle import __main__ as oracle
from experiments.vbench import __main__ as vbench
from recapture_jax.errors import InputError


def defined(clips=4):
    """A script's flags, not parsed yet."""
    values = flags.FlagValues()
    flags.DEFINE_integer("clips", clips, "scenes to draw", lower_bound=1, flag_values=values)
    command.define_path("dst", None, "file for the table", values)
    command.define_new_file("out", "file for the page", values)
    return values


def refused(parse, arguments):
    """The one line of the refusal."""
    with pytest.raises(InputError) as caught:
        parse(arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_scripts_with_the_same_flags_do_not_clash():
    one, other = defined(), defined(clips=7)
    assert command.parse(one, ["--clips=2"]) is one
    command.parse(other, [])
    assert (one.clips, other.clips) == (2, 7)
    assert not {"clips", "dst"} & set(flags.FLAGS)


def test_flag_of_a_path():
    def dst(*arguments):
        return command.parse(defined(), arguments).dst

    assert dst() is None
    assert dst("--dst=tables/a.md") == pathlib.Path("tables/a.md")
    assert dst("--dst", "~/a.md") == pathlib.Path.home() / "a.md"
    values = flags.FlagValues()
    command.define_path("out", "outputs/here", "folder", values)
    assert command.parse(values, []).out == pathlib.Path("outputs/here")


def test_flag_of_a_file_that_is_to_be_written(tmp_path):
    assert command.parse(defined(), []).out is None
    assert command.parse(defined(), [f"--out={tmp_path}/a.md"]).out == tmp_path / "a.md"
    (tmp_path / "there.md").touch()
    message = refused(lambda a: command.parse(defined(), a), [f"--out={tmp_path}/there.md"])
    assert "there already: name another file" in message
    message = refused(lambda a: command.parse(defined(), a), [f"--out={tmp_path}/no/a.md"])
    assert f"no folder {tmp_path}/no: make it first" in message


@pytest.mark.parametrize(
    "argument, said",
    [
        ("--clip_count=3", "clip_count"),
        ("--clips=many", "--clips=many"),
        ("--clips=0", "--clips=0"),
        ("--dst=~nobody-of-that-name/a.md", "--dst=~nobody"),
        ("clips", "unexpected argument 'clips': options start with --"),
    ],
)
def test_refusals_are_one_line(argument, said):
    assert said in refused(lambda given: command.parse(defined(), given), [argument])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_the_doc_and_the_flags(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        command.parse(defined(), ["--clips=2", flag], "Draws scenes.\n\n    an example\n")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("Draws scenes.\n\n    an example\n")
    assert "--clips: scenes to draw" in text and "--dst: file for the table" in text
    assert "experiments.command" not in text  # the flags are the script's


def test_end_of_a_script(capsys):
    """What it returns is printed; bad input is one line and exit code 2."""
    for action, code in ((lambda: "a table", 0), (lambda: oracle.parse(["--seed=-1"]), 2)):
        with pytest.raises(SystemExit) as ended:
            command.main(action)
        assert ended.value.code == code
    captured = capsys.readouterr()
    assert captured.out == "a table\n"
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_flags_of_the_scripts():
    given = memory.parse(["--frames=2", "--remat=none", "--trace_only"])
    assert (given.frames, given.remat, given.dtype, given.trace_only) == (2, "none", "bfloat16", 1)
    assert "--remat=some" in refused(memory.parse, ["--remat=some"])
    assert oracle.parse([]).clips == 4
    assert "--height=8" in refused(oracle.parse, ["--height=8"])


def test_names_of_mistakes_may_hold_commas():
    assert mutations.parse([]).only == []
    only = mutations.parse(['--only=tanh GELU,"fps id 7, not 6"']).only
    assert only == ["tanh GELU", "fps id 7, not 6"] and set(only) < set(mutations.NAMES)
    assert "'fps id 7'" in refused(mutations.parse, ["--only=fps id 7, not 6"])


def test_rows_repeat_and_are_required():
    given = vbench.parse(["--row=a=x", "--row=b=y", "--prompts=p.json"])
    assert given.row == ["a=x", "b=y"] and given.prompts == pathlib.Path("p.json")
    assert given.dst == pathlib.Path("outputs/vbench")
    assert "--row" in refused(vbench.parse, ["--prompts=p.json"])
    assert "--prompts" in refused(vbench.parse, ["--row=a=x"])


def test_an_interrupt_that_a_callback_swallows_is_heard():
    code = """
import gc, signal, sys, time
from recapture_jax import terminal

def callback(phase, info):
    gc.callbacks.clear()
    signal.raise_signal(signal.SIGINT)

def action():
    gc.callbacks[:] = [callback]
    gc.collect()
    for _ in range(200):
        time.sleep(0.1)
    return "not heard"

sys.exit(terminal.finish(action))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.startswith("interrupted"), done


def test_a_reader_that_stops_early_is_no_fault():
    code = "from recapture_jax import terminal; terminal.finish(lambda: 'line\\n' * 10**5)"
    shell = f'{sys.executable} -c "{code}" | head -1'
    done = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("line\n", "")
