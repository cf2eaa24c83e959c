"""The command line: arguments in, exit codes out. Every command is a function elsewhere.

Exit codes: 0 ok, 1 the run failed, 2 a bad graph or bad usage, 3 weights are missing, 130 interrupted,
after everything recognised so far has been delivered.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from kernels import KernelError
from pipeline import commands, manual
from pipeline.complaints import hint, quoted
from pipeline.ends.paths import reason
from pipeline.errors import GraphError, PipelineError, SinkClosed
from pipeline.progress import say
from stages import StageError

PROGRAM = "python -m pipeline"
RANDOM = "weights random"  # a command of two words: its OUT may stand behind an option


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every failure is one line on standard error and an exit code, unless --debug."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = parse(words)
        return arguments.command(arguments)
    except KeyboardInterrupt:
        return commands.INTERRUPTED
    except SinkClosed:  # the reader of our output went away, as with `| head`
        return SinkClosed.exit_code
    except Exception as error:  # the one place where everything ends up
        say(traceback.format_exc() if "--debug" in words else complaint(error))
        return getattr(error, "exit_code", 1)


def complaint(error: Exception) -> str:
    """What went wrong, in the words of whoever noticed."""
    if isinstance(error, PipelineError | StageError | KernelError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {error or 'try smaller weights, a smaller context or fewer lanes'}"
    if isinstance(error, OSError):
        return ": ".join([*([str(error.filename)] if error.filename else []), reason(error)])
    return f"unexpected {error!r}; --debug shows where it came from"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command, its options, and under `params` the values for what its graph declares.

    Raises
    ------
    GraphError   with one line that says what is wrong
    """
    words = [RANDOM, *words[2:]] if " ".join(words[:2]) == RANDOM else list(words)
    parser = make_parser()
    at = next((n for n, word in enumerate(words) if not word.startswith("-")), len(words))
    params: dict[str, str] = {}
    if command := parser.commands.get(" ".join(words[at : at + 1])):
        words[at + 1 :], params = command.split(words[at + 1 :])
    arguments = parser.parse_args(words)
    arguments.params = params
    return arguments


class Parser(argparse.ArgumentParser):
    """One that complains in one line, and lets a graph's parameters stand anywhere among its options.

    commands : the parsers of the commands, by name
    takes_params : whether an option it does not know is a parameter of the graph
    """

    def __init__(self, prog: str | None = None, *, takes_params: bool = False, **options: Any):
        self.commands: dict[str, Parser] = {}
        self.takes_params = takes_params
        self._values: dict[str, bool] = {}  # of every option: whether a value follows it
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, allow_abbrev=False, formatter_class=shape, **options)

    def add_argument(self, *args: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*args, **options)
        self._values |= dict.fromkeys(action.option_strings, action.nargs != 0)
        return action

    def error(self, message: str) -> NoReturn:
        raise GraphError(f"{self.prog}: {message} (see {self.prog} --help)")

    def split(self, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """`words` without what the graph declares, such as `--delay 960ms`, and that as a dictionary.

        Raises
        ------
        GraphError   for an option that is neither ours nor followed by a value
        """
        own: list[str] = []
        params: dict[str, str] = {}
        rest = iter(words)
        for word in rest:
            name, equals, value = word.partition("=")
            if word == "--":
                return [*own, word, *rest], params
            if not word.startswith("--") or name in self._values:
                own += [word, *itertools.islice(rest, 1 if self._values.get(word) else 0)]
                continue
            if not self.takes_params or (not equals and (value := next(rest, "--")).startswith("--")):
                self.error(f"there is no option {quoted(name)}{hint(name, self._values, 'options')}")
            params[name[2:]] = value
        return own, params

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As the original, with "did you mean"."""
        if action.choices is not None and value not in action.choices:
            cure = hint(str(value), map(str, action.choices), "there are")
            raise argparse.ArgumentError(action, f"there is no {quoted(value)}{cure}")


def make_parser() -> Parser:
    """The whole command line; kept apart so that tests and `--help` see one thing."""
    what = "Streaming speech recognition as a dataflow graph."
    parser = Parser(PROGRAM, description=what, epilog=manual.OVERVIEW)
    parser.add_argument("--version", action="version", version=f"headrace {version('headrace')}")
    found = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _running(found.add_parser)
    _looking(found.add_parser)
    _making(found.add_parser)
    parser.commands = dict(found.choices)
    return parser


def _command(add: Callable, name: str, run: Callable, text: str, *, params: bool = False) -> Parser:
    what = f"{text[0].upper()}{text[1:]}."
    parser = add(name, help=text, description=what, epilog=manual.COMMANDS[name], takes_params=params)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.set_defaults(command=run, takes_params=params)
    return parser


def _graph_options(parser: Parser, example: str = "source.file.path=talk.wav") -> None:
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="NODE.OPTION=VALUE",
                        help=f"override one option, e.g. {example}; repeatable")  # fmt: skip
    parser.add_argument(
        "--weights", help="a folder or a .gguf file, instead of the built-in model (also: VOXTRAL)"
    )
    parser.add_argument("--backend", help="where the arithmetic runs (default: the graph's own, auto)")
    parser.add_argument("--allow-import", action="store_true",
                        help="let the graph name stages of your own as module:Class")  # fmt: skip


def _chain_of(parser: Parser, example: str = "lanes.count=4") -> None:
    parser.add_argument("--graph", default="file", help="the graph whose chain to use (default: file)")
    _graph_options(parser, example)


def _running(add: Callable) -> None:
    run = _command(add, "run", commands.run, "run a graph from its source to its sinks", params=True)
    run.add_argument("graph", help="a YAML file, or the name of one that ships: file, mic")
    run.add_argument("--metrics", action="store_true", help="print what each stage cost, on standard error")
    run.add_argument("--metrics-json", metavar="PATH", help="write the same figures to a file at exit")
    _graph_options(run)
    _transcribe(add)
    _evaluate(add)
    _bench(add)


def _transcribe(add: Callable) -> None:
    transcribe = _command(
        add, "transcribe", commands.transcribe, "write the text of recordings", params=True
    )
    transcribe.add_argument(
        "files", nargs="+", metavar="FILE", help="anything soundfile reads; - is standard input"
    )
    transcribe.add_argument("--format", choices=["txt", "srt", "vtt", "json", "jsonl"], default="txt",
                            help="how to write it (default: txt, a line per utterance)")  # fmt: skip
    transcribe.add_argument("--output", "-o", default="-",
                            help="a file, or a folder for one each (default: standard output)")  # fmt: skip
    _chain_of(transcribe)


def _evaluate(add: Callable) -> None:
    evaluate = _command(
        add, "evaluate", commands.evaluate, "measure error rates on a manifest", params=True
    )
    evaluate.add_argument("manifest", help="a TSV with the columns file (relative to it) and text")
    evaluate.add_argument("--only", metavar="FOLDER", action="append", default=[],
                          help="only files below FOLDER; repeatable")  # fmt: skip
    evaluate.add_argument("--normalizer", choices=["basic", "english"], default="basic",
                          help="applied to both texts: basic lowers case and drops punctuation; english also "
                               "turns numbers into digits, for large models (default: basic)")  # fmt: skip
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.add_argument(
        "--errors", action="store_true", help="list every recording with errors, on standard error"
    )
    _chain_of(evaluate)


def _bench(add: Callable) -> None:
    bench = _command(
        add, "bench", commands.bench, "measure speed: real-time factor, ms per step, latency", params=True
    )
    bench.add_argument("--seconds", type=float, default=20.0, help="audio per figure (default: 20)")
    bench.add_argument("--kernels", action=argparse.BooleanOptionalAction,
                       help="also measure the processor or GPU itself, its kernels and the steps of a model "
                            "of real size, beside what else is installed (default: where the backend is "
                            "cpu or cuda)")  # fmt: skip
    bench.add_argument("--budget", type=float, default=540.0, metavar="SECONDS",
                       help="begin no figure of --kernels after this long (default: 540)")  # fmt: skip
    bench.add_argument("--recordings", metavar="MANIFEST",
                       help="a TSV as for evaluate, for what 8-bit activations on cpu cost in words "
                            "(default: the examples)")  # fmt: skip
    bench.add_argument("--record", action="store_true",
                       help="put the figures of --kernels into the BENCHMARKS.md of this folder")  # fmt: skip
    bench.add_argument("--json", action="store_true", help="print one JSON object")
    bench.add_argument("--markdown", action="store_true", help="print Markdown, as in BENCHMARKS.md")
    _chain_of(bench, "decoder.context=2048")


GRAPH = "a YAML file, or the name of one that ships"


def _looking(add: Callable) -> None:
    validate = _command(
        add, "validate", commands.validate, "check a graph without weights or device", params=True
    )
    validate.add_argument("graph", help=GRAPH)
    _graph_options(validate)

    inspect = _command(
        add, "inspect", commands.inspect, "list stages, sources and sinks, or explain one with its options"
    )
    inspect.add_argument("stage", nargs="?", help="a name from the list, such as mel or voxtral.decoder")

    draw = _command(add, "draw", commands.draw, "draw a graph as text", params=True)
    draw.add_argument("graph", help=GRAPH)
    draw.add_argument("--format", choices=["mermaid", "dot"], default="mermaid",
                      help="the language of the drawing (default: mermaid)")  # fmt: skip
    _graph_options(draw)

    _command(add, "schema", commands.schema, "print the JSON Schema of graph files, for editors")
    _command(add, "devices", commands.devices, "list microphones")
    doctor = _command(
        add, "doctor", commands.doctor, "say what works on this machine, what is missing and the cure"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")


def _making(add: Callable) -> None:
    warmup = _command(
        add, "warmup", commands.warmup, "compile kernels now, so that the first run does not", params=True
    )
    _chain_of(warmup, "backend.isa=avx2")

    weights = _command(add, "weights", commands.weights, "show what is inside a weights file or folder")
    weights.add_argument("file", help="a .gguf or .safetensors file, or a folder")
    weights.add_argument("--tensors", action="store_true", help="list every tensor too, not only the totals")

    random = _command(add, RANDOM, commands.random_weights, "write random weights of a real model's shape")
    random.add_argument("out", metavar="OUT", help="a .gguf (Q4_0) or .safetensors (bf16) file")
    random.add_argument("--like", default="voxtral-mini-4b",
                        help="a model's name or a params.json (default: voxtral-mini-4b)")  # fmt: skip
    random.add_argument("--seed", type=int, default=0, help="a whole number from 0 (default: 0)")

    quantize = _command(
        add, "quantize", commands.quantize, "convert weights to GGUF (Q4_0, Q8_0) or to SafeTensors"
    )
    quantize.add_argument("source", metavar="IN", help="a file or folder of weights")
    quantize.add_argument("out", metavar="OUT", help="a .gguf or .safetensors file")
    quantize.add_argument("--kind", choices=["q4_0", "q8_0", "bf16", "f16", "f32"],
                          help="type of the matrices in a .gguf, or of all tensors in a .safetensors, which "
                               "holds floats only (default: q4_0, bf16)")  # fmt: skip
