"""The command line: arguments in, exit codes out. Every command is a function elsewhere.

Exit codes: 0 ok, 1 the run failed, 2 a bad graph or bad usage, 3 weights are missing, 130 interrupted,
after everything recognised so far has been delivered.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from kernels import KernelError
from pipeline import commands
from pipeline.errors import GraphError, PipelineError
from stages import StageError

EPILOG = """\
examples:
  python -m pipeline run graphs/file.yaml                       the recording and the model that ship
  python -m pipeline run mic                                    the microphone, live
  python -m pipeline run file --set source.file.path=talk.wav   any audio file; - is standard input
  python -m pipeline run file --set source.file.path=talk.wav --set source.file.pace=realtime
  python -m pipeline transcribe *.flac --format srt -o texts/   subtitles, a file for each recording
  python -m pipeline doctor                                     what works here, and what is missing

exit codes: 0 ok, 1 the run failed, 2 bad graph or usage, 3 weights missing, 130 interrupted
(what was recognised until then is delivered)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every failure is one line on standard error and an exit code, unless --debug."""
    parser = make_parser()
    words = sys.argv[1:] if argv is None else list(argv)
    if " ".join(words[:2]) == RANDOM:
        words[:2] = [RANDOM]
    arguments, rest = parser.parse_known_args(words)
    try:
        arguments.params = params_of(rest) if arguments.takes_params else refuse(parser, rest)
        code = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output went away, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (PipelineError, StageError, KernelError, OSError, MemoryError) as error:
        if arguments.debug:
            raise
        print(complaint(error), file=sys.stderr)
        return getattr(error, "exit_code", 1)


def complaint(error: BaseException) -> str:
    """What went wrong, in the words of whoever noticed."""
    if isinstance(error, MemoryError):
        return f"out of memory: {error or 'try smaller weights, a smaller context or fewer lanes'}"
    return str(error) or type(error).__name__


def params_of(rest: Sequence[str]) -> dict[str, str]:
    """`--delay 960ms --weights=FILE` as a dictionary; the graph says which names it takes.

    Raises
    ------
    GraphError   for a word that is no option, or an option without its value
    """
    params: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            raise GraphError(f"unexpected argument {word!r}; overrides are written --set node.option=value")
        name, equals, value = word[2:].partition("=")
        if not equals and (value := next(words, "--")).startswith("--"):
            raise GraphError(f"--{name} needs a value, as in --{name} VALUE")
        params[name] = value
    return params


def refuse(parser: argparse.ArgumentParser, rest: Sequence[str]) -> dict[str, str]:
    if rest:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    return {}


def make_parser() -> argparse.ArgumentParser:
    """The whole command line; kept apart so that tests and `--help` see one thing."""
    parser = argparse.ArgumentParser(
        "python -m pipeline", description="Streaming speech recognition as a dataflow graph.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"headrace {version('headrace')}")
    add = parser.add_subparsers(title="commands", required=True, metavar="COMMAND").add_parser
    _running(add)
    _looking(add)
    _making(add)
    return parser


def _command(
    add: Callable, name: str, run: Callable, text: str, *, params: bool = False, more: str = ""
) -> argparse.ArgumentParser:
    parser = add(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.set_defaults(command=run, takes_params=params)
    return parser


def _graph_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="NODE.OPTION=VALUE",
                        help="override one option, e.g. source.file.path=talk.wav; repeatable")  # fmt: skip
    parser.add_argument(
        "--weights", help="a folder or a .gguf file, instead of the built-in model (also: VOXTRAL)"
    )
    parser.add_argument("--backend", help="where the arithmetic runs (default: the graph's own, auto)")
    parser.add_argument("--allow-import", action="store_true",
                        help="let the graph name stages of your own as module:Class")  # fmt: skip


PARAMS = """\
What the graph declares under `params` is an option too, such as --delay 960ms (80ms to 1200ms in steps of
80ms, or 2400ms).
"""


def _running(add: Callable) -> None:
    _run(add)
    _transcribe(add)
    _evaluate(add)
    bench = _command(add, "bench", commands.bench, "measure speed: real-time factor, ms per step, latency",
                     params=True, more=PARAMS)  # fmt: skip
    bench.add_argument("--graph", default="file", help="the graph whose chain to measure (default: file)")
    bench.add_argument("--seconds", type=float, default=20.0, help="audio per figure (default: 20)")
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    _graph_options(bench)


def _run(add: Callable) -> None:
    run = _command(
        add, "run", commands.run, "run a graph from its source to its sinks", params=True, more=PARAMS
    )
    run.add_argument("graph", help="a YAML file, or the name of one that ships: file, mic")
    _graph_options(run)
    run.add_argument("--metrics", action="store_true", help="print what each stage cost, on standard error")
    run.add_argument("--metrics-json", metavar="PATH", help="write the same figures to a file at exit")


def _transcribe(add: Callable) -> None:
    transcribe = _command(add, "transcribe", commands.transcribe, "write the text of recordings",
                          params=True, more=PARAMS)  # fmt: skip
    transcribe.add_argument(
        "files", nargs="+", metavar="FILE", help="anything soundfile reads; - is standard input"
    )
    transcribe.add_argument("--format", choices=["txt", "srt", "vtt", "json", "jsonl"], default="txt")
    transcribe.add_argument("--output", "-o", default="-",
                            help="a file, or a folder for one each (default: standard output)")  # fmt: skip
    transcribe.add_argument("--graph", default="file", help="the graph whose chain to use (default: file)")
    _graph_options(transcribe)


def _evaluate(add: Callable) -> None:
    evaluate = _command(add, "evaluate", commands.evaluate, "measure error rates on a manifest",
                        params=True, more=PARAMS)  # fmt: skip
    evaluate.add_argument("manifest", help="a TSV with the columns file (relative to it) and text")
    evaluate.add_argument("--graph", default="file", help="the graph whose chain to use (default: file)")
    evaluate.add_argument("--only", metavar="FOLDER", action="append", default=[],
                          help="only files below FOLDER; repeatable")  # fmt: skip
    evaluate.add_argument("--normalizer", choices=["basic", "english"], default="basic",
                          help="applied to both texts: basic lowers case and drops punctuation; english also "
                               "turns numbers into digits, for large models (default: basic)")  # fmt: skip
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.add_argument(
        "--errors", action="store_true", help="list every recording with errors, on standard error"
    )
    _graph_options(evaluate)


def _looking(add: Callable) -> None:
    validate = _command(
        add, "validate", commands.validate, "check a graph without weights or device", params=True
    )
    validate.add_argument("graph")
    _graph_options(validate)

    inspect = _command(
        add, "inspect", commands.inspect, "list stages, sources and sinks, or explain one with its options"
    )
    inspect.add_argument("stage", nargs="?", help="a name from the list, such as mel or voxtral.decoder")

    draw = _command(add, "draw", commands.draw, "draw a graph as text", params=True)
    draw.add_argument("graph")
    draw.add_argument("--format", choices=["mermaid", "dot"], default="mermaid")
    _graph_options(draw)

    _command(add, "schema", commands.schema, "print the JSON Schema of graph files, for editors")
    _command(add, "devices", commands.devices, "list microphones")
    doctor = _command(
        add, "doctor", commands.doctor, "say what works on this machine, what is missing and the cure"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")


RANDOM = "weights random"  # a command of two words: its OUT may stand behind an option
RANDOM_WEIGHTS = """\
`weights random --like voxtral-mini-4b OUT` writes seeded random weights of the exact real tensor table
(.gguf: Q4_0, .safetensors: bf16), to measure speed and memory on the true sizes before downloading anything.
"""


def _making(add: Callable) -> None:
    weights = _command(add, "weights", commands.weights, "show what is inside a weights file or folder",
                       more=RANDOM_WEIGHTS)  # fmt: skip
    weights.add_argument("file", help="a .gguf or .safetensors file, or a folder")
    weights.add_argument("--tensors", action="store_true", help="list every tensor too, not only the totals")

    random = _command(add, RANDOM, commands.random_weights, "write random weights of a real model's shape",
                      more=RANDOM_WEIGHTS)  # fmt: skip
    random.add_argument("out", metavar="OUT", help="a .gguf (Q4_0) or .safetensors (bf16) file")
    random.add_argument("--like", default="voxtral-mini-4b", help="a model's name or a params.json")
    random.add_argument("--seed", type=int, default=0)

    quantize = _command(
        add, "quantize", commands.quantize, "convert weights to GGUF (Q4_0, Q8_0) or to SafeTensors"
    )
    quantize.add_argument("source", metavar="IN", help="a file or folder of weights")
    quantize.add_argument("out", metavar="OUT", help="a .gguf or .safetensors file")
    quantize.add_argument(
        "--kind", choices=["q4_0", "q8_0"], default="q4_0", help="block type in a .gguf (default: q4_0)"
    )
