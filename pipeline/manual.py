"""What `--help` shows below a command's options: examples that can be pasted, and what is not obvious."""

OVERVIEW = """\
examples:
  python -m pipeline run graphs/file.yaml                       the recording and the model that ship
  python -m pipeline run mic                                    the microphone, live
  python -m pipeline run file --set source.file.path=talk.wav   any audio file; - is standard input
  python -m pipeline run file --set source.file.path=talk.wav --set source.file.pace=realtime
  python -m pipeline transcribe *.flac --format srt -o texts/   subtitles, a file for each recording
  python -m pipeline doctor                                     what works here, and what is missing

exit codes: 0 ok, 1 the run failed, 2 bad graph or usage, 3 weights missing, 130 interrupted
(what was recognised until then is delivered)

`python -m pipeline COMMAND --help` explains a command; --debug shows the traceback of any failure.
"""

PARAMS = """
What the graph declares under `params` is an option too. The graphs that ship declare:
  --weights PATH     a folder or a .gguf file; without it VOXTRAL, and without that the built-in small model
  --delay 960ms      80ms to 1200ms in steps of 80ms, or 2400ms (default 480ms): longer hears more
  --normalize running   level the loudness first (default: off)
  --backend cuda     where the arithmetic runs (default: auto, the best that opens); `inspect cuda` lists what
                     --set backend.kv=q8 and the like may set
"""

COMMANDS = {
    "run": """\
examples:
  python -m pipeline run graphs/file.yaml                       the recording that ships
  python -m pipeline run file --set source.file.path=talk.wav   another; - is standard input
  python -m pipeline run file --set source.file.path=talk.wav --set source.file.pace=8x
  arecord -f S16_LE -r 16000 -t raw | python -m pipeline run file --set source.file.path=- \\
      --set source.file.raw_rate=16kHz --set source.file.block=80ms
  python -m pipeline run mic --delay 240ms --set sink.subtitles.path=talk.srt
  python -m pipeline run mine.yaml --weights voxtral-q4.gguf --metrics

Text goes to the graph's sinks, all else to standard error. ^C ends the hearing and delivers what was heard;
a second ^C ends at once.
"""
    + PARAMS,
    "transcribe": """\
examples:
  python -m pipeline transcribe talk.flac
  python -m pipeline transcribe talk.flac --format srt -o talk.srt
  python -m pipeline transcribe *.flac --format json -o texts/     a file for each recording
  python -m pipeline transcribe *.flac --set lanes.count=4         four at a time
  ffmpeg -v error -i film.mkv -f wav - | python -m pipeline transcribe - --format vtt

A recording that fails stops no other; the exit code is 1 then. Of the graph only the chain is used, and the
options of a file source.
"""
    + PARAMS,
    "evaluate": """\
examples:
  python -m pipeline evaluate examples/audio/transcripts.tsv
  python -m pipeline evaluate corpus.tsv --only test --json > test.json
  python -m pipeline evaluate corpus.tsv --normalizer english --weights voxtral-q4.gguf

The manifest is text in UTF-8, its columns parted by tabs, the first line naming them:
  file          text
  a/one.flac    what is said in it
"""
    + PARAMS,
    "bench": """\
examples:
  python -m pipeline bench
  python -m pipeline bench --no-kernels --seconds 60 --weights voxtral-q4.gguf --json
  python -m pipeline bench --backend cpu --record     some minutes: the model's figures, then the processor's
  python -m pipeline bench --backend cuda --record    under 10 minutes: the model's figures, then the GPU's

No weights are needed for the figures of the real size: random ones are made there, and take 2.6 GB. What else
is installed is measured beside ours: ggml (pip install xllamacpp) on a processor, torch and transformers on a
GPU. What is left out is said, and why.
"""
    + PARAMS,
    "validate": """\
examples:
  python -m pipeline validate mine.yaml
  python -m pipeline validate mine.yaml --delay 960ms --set sink.jsonl.path=talk.jsonl

Every fault is named at once, as file:line:column: message. `inspect` lists what a graph may hold.
""",
    "inspect": """\
examples:
  python -m pipeline inspect
  python -m pipeline inspect voxtral.decoder
  python -m pipeline inspect file
""",
    "draw": """\
examples:
  python -m pipeline draw file                        for Markdown, between ```mermaid and ```
  python -m pipeline draw mine.yaml --format dot | dot -Tsvg -o mine.svg
""",
    "schema": """\
examples:
  python -m pipeline schema > graph.schema.json
Then, on top of a graph, for the YAML language server of an editor:
  # yaml-language-server: $schema=graph.schema.json
""",
    "devices": """\
examples:
  python -m pipeline devices
  python -m pipeline run mic --set source.mic.device=2       by number, or by a part of the name
""",
    "doctor": """\
examples:
  python -m pipeline doctor
  python -m pipeline doctor --json
""",
    "warmup": """\
examples:
  python -m pipeline warmup                           for the backend that auto picks
  python -m pipeline warmup --backend cuda
  HEADRACE_CPU_ISA=avx2 python -m pipeline warmup     another instruction set than the best one

Kernels are the same for every model, and are kept for the user until the program, its compiler or the machine
changes: below XDG_CACHE_HOME or ~/.cache (cpu), in CUPY_CACHE_DIR or ~/.cupy (cuda).
"""
    + PARAMS,
    "weights": """\
examples:
  python -m pipeline weights models/voxtral               a folder with params.json and tekken.json
  python -m pipeline weights voxtral-q4.gguf --tensors
  python -m pipeline weights random OUT.gguf              see `weights random --help`
""",
    "weights random": """\
examples:
  python -m pipeline weights random --like voxtral-mini-4b random/voxtral.gguf
  python -m pipeline weights random --like models/voxtral/params.json random/voxtral.safetensors
  python -m pipeline bench --weights random/voxtral.gguf

The tensor table is the model's own, so speed and memory can be measured before anything is downloaded. A
.gguf is Q4_0, a .safetensors bf16; params.json and tekken.json are written beside it.
""",
    "quantize": """\
examples:
  python -m pipeline quantize models/voxtral voxtral/q4.gguf
  python -m pipeline quantize models/voxtral voxtral/q8.gguf --kind q8_0
  python -m pipeline quantize q4.gguf plain/consolidated.safetensors

params.json and tekken.json are copied beside OUT.
""",
}
