"""The `mmalign` command. Thin: it parses, imports what a subcommand needs, and calls it."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from mmalign import __version__

_TRAIN_HELP = """\
Runs every stage of an experiment and evaluates every column before the first stage and after each of them.

The YAML is complete: nothing is layered. Any of its keys can be overridden with its dotted path:

    mmalign train --config configs/debug.yaml --seed 3 --stages.one.steps 20 --model.init_args.dim=64

A misspelt key, an unknown class or a value of the wrong type is refused, with the key's name, before anything is built.
RUN gets config.yaml, metrics.jsonl, train.csv, quarantine.jsonl, cost.json, checkpoints/, wandb/ and report.html.

Several processes (the global batch, and so the result, stays the same):

    torchrun --nproc-per-node 4 -m mmalign train --config FILE --out RUN --runtime.devices 4
    srun --ntasks-per-node 4 --gpus-per-node 4 mmalign train --config FILE --out RUN \\
        --runtime.devices 4 --runtime.num_nodes $SLURM_NNODES
"""

_DEVICE_HELP = "auto (a GPU where there is one), cpu, cuda, cuda:N or mps; default: %(default)s"

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; building it imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="mmalign",
        description="Multimodal alignment that does not forget: train image, audio and text encoders stage by stage, "
        "measure after every stage what was learned and what was lost.",
    )
    parser.add_argument("--version", action="version", version=f"mmalign {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="align three modalities from nothing, and see what is forgotten",
        description="Builds the data, trains, evaluates, and leaves OUT/report.html and OUT/metrics.jsonl. 'scenes' is "
        "generated and needs no download; 'tuxpaint' fetches real pictures, real speech and pretrained towers.",
    )
    demo.add_argument("--data", choices=["scenes", "tuxpaint"], default="scenes", help="default: %(default)s")
    demo.add_argument("--out", type=Path, default=None, help="default: runs/demo, or runs/tuxpaint")

    _add_assets_and_data(commands)
    _add_train_evaluate_export(commands)
    _add_search(commands)
    for name in ("evaluate", "search", "export"):
        commands.choices[name].add_argument(
            "--trust", action="append", default=[], metavar="PACKAGE", help="whose classes the checkpoint may name, too"
        )
    _add_report_compare_bench(commands)
    return parser


def _add_assets_and_data(commands: _Commands) -> None:
    assets = commands.add_parser("assets", help="pretrained weights and data sets: list, fetch, find")
    verbs = assets.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("list", help="what there is, its licence, size, and whether it is in the cache")
    fetch = verbs.add_parser("fetch", help="download, verify by SHA-256, keep in the cache ($MMALIGN_CACHE)")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    verbs.add_parser("path", help="where an asset lies").add_argument("name", metavar="NAME")

    data = commands.add_parser("data", help="shard directories: build, index, check, describe")
    verbs = data.add_subparsers(dest="verb", required=True, metavar="VERB")
    build = verbs.add_parser(
        "build",
        help="any data set -> WebDataset tars, an index and a data card",
        description="SOURCE is scenes, tuxpaint, openclipart, docstrings, … or the class path of a Source of your own. "
        "Settings of the source follow as --KEY VALUE, for example: mmalign data build scenes --out DIR --train 2000",
    )
    build.add_argument("source", metavar="SOURCE")
    build.add_argument("--out", type=Path, required=True, metavar="DIR")
    index = verbs.add_parser("index", help="index tars that others wrote (img2dataset, open_clip users)")
    index.add_argument("directory", type=Path, metavar="DIR")
    index.add_argument(
        "--tolerate", action="store_true", help="index the good samples of damaged tars, report the rest"
    )
    check = verbs.add_parser("check", help="decode everything, and report what training would quarantine")
    check.add_argument("directory", type=Path, metavar="DIR")
    verbs.add_parser("card", help="print the data card").add_argument("directory", type=Path, metavar="DIR")


def _add_train_evaluate_export(commands: _Commands) -> None:
    train = commands.add_parser(
        "train", help="run an experiment", description=_TRAIN_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    train.add_argument("--config", type=Path, required=True, metavar="FILE", help="the experiment, one complete YAML")
    train.add_argument("--out", type=Path, default=None, metavar="RUN", help="the run's folder; default: runs/NAME")
    train.add_argument("--arm", default=None, help="one of the file's arms, where it compares several")
    train.add_argument(
        "--resume", action="store_true", help="go on where the run's last checkpoint stands, if it has one"
    )
    train.add_argument("--print-config", action="store_true", help="print the complete configuration, and stop")

    evaluate = commands.add_parser(
        "evaluate",
        help="zero-shot retrieval of a run or checkpoint on any shards",
        description="All directions between all modalities of the data, with 95 % intervals and chance. The model and "
        "its preprocessing come out of the checkpoint; the rows are those of metrics.jsonl.",
    )
    evaluate.add_argument("checkpoint", type=Path, metavar="RUN_OR_CHECKPOINT")
    evaluate.add_argument("--data", type=Path, required=True, metavar="SHARDS")
    evaluate.add_argument("--split", default="test", help="default: %(default)s")
    evaluate.add_argument("--modalities", nargs="*", default=[], metavar="NAME=PATTERN", help="e.g. text=captions[*]")
    evaluate.add_argument("--gallery", type=int, default=None, help="only the first so many samples")
    evaluate.add_argument("--out", type=Path, default=None, metavar="FILE", help="write the rows there as JSON lines")
    evaluate.add_argument("--device", default="auto", help=_DEVICE_HELP)

    export = commands.add_parser(
        "export",
        help="a trained model as safetensors, with its preprocessing and a model card",
        description="Writes DIR, which mmalign.load and every command that takes a checkpoint read, and which needs no "
        "network to be loaded. A causal Hugging Face text tower lies in it as a plain Hugging Face model, too.",
    )
    export.add_argument("checkpoint", type=Path, metavar="RUN_OR_CHECKPOINT")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not hold anything yet")


def _add_search(commands: _Commands) -> None:
    search = commands.add_parser(
        "search",
        help="ask the pictures, sounds or texts of any shards with a text or a file",
        description="Embeds one modality of a split and the query with the model of a run, a checkpoint or an export, "
        "and prints cosine, key and caption of the best. Search is exact; with --index it goes through a faiss index, "
        "whose recall against exact search is printed, too. 'auto' takes an index by the number of items.",
    )
    search.add_argument("checkpoint", type=Path, metavar="RUN_OR_CHECKPOINT")
    search.add_argument("--data", type=Path, required=True, metavar="SHARDS")
    search.add_argument("--split", default="test", help="default: %(default)s")
    query = search.add_mutually_exclusive_group(required=True)
    query.add_argument("--text", help="the query")
    query.add_argument("--file", type=Path, help="the query: a picture, a sound, a text or an array, by its extension")
    search.add_argument("--as", dest="query_modality", metavar="NAME", help="where several encoders could read it")
    search.add_argument("--modality", default="image", metavar="NAME", help="what is searched; default: %(default)s")
    search.add_argument("--modalities", nargs="*", default=[], metavar="NAME=PATTERN", help="e.g. text=captions[*]")
    search.add_argument("--top", type=int, default=10, help="results; default: %(default)s")
    search.add_argument("--index", default=None, metavar="FACTORY", help="auto, or e.g. IVF256,Flat:nprobe=8")
    search.add_argument("--device", default="auto", help=_DEVICE_HELP)


def _add_report_compare_bench(commands: _Commands) -> None:
    report = commands.add_parser(
        "report",
        help="one self-contained HTML page of one or several runs",
        description="What was run, curves, the table of metrics with intervals and chance, the forgetting matrix, "
        "examples of retrieval with pictures and sound, costs. Several runs stand side by side, grouped by arm.",
    )
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    report.add_argument("--out", type=Path, default=None, metavar="FILE")

    compare = commands.add_parser(
        "compare",
        help="arms and seeds side by side: table, heat maps, stability against plasticity",
        description="Takes finished runs, or a YAML that names arms and seeds, whose missing runs it trains first.",
    )
    compare.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    compare.add_argument("--config", type=Path, default=None, metavar="FILE", help="an experiment with arms and seeds")
    compare.add_argument("--out", type=Path, default=None, metavar="DIR", help="default: runs/compare, or runs/NAME")
    compare.add_argument("--jobs", type=int, default=None, help="runs trained at the same time; default: 1")
    compare.add_argument("--arms", nargs="*", default=None, metavar="ARM", help="only these arms")
    compare.add_argument("--results", type=Path, default=None, metavar="JSON", help="write the figures there as well")

    bench = commands.add_parser(
        "bench",
        help="time and memory against the peers, on this machine",
        description="Runs mmalign and its peers alternately, each in a process of its own, and prints the median ratio "
        "(mmalign over peer) of at least 5 pairs with min and max. On an idle machine, please.",
    )
    bench.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks; default: all (see --list)")
    bench.add_argument("--list", action="store_true", help="print names, peers and bars, and stop")
    bench.add_argument("--growth", action="store_true", help="measure time and memory at four sizes each, fit, plot")
    bench.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FILE",
        help="the results; default: configs/results/benchmarks.json, or benchmarks_cuda.json there",
    )
    bench.add_argument("--threads", type=int, default=None, help="of every side; default: one per physical core")
    bench.add_argument("--scale", type=float, default=1.0, help="share of the full size, for trying out")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides compute")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. Errors of the user's making are one line on stderr."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    takes_rest = (
        options.command == "train"
        or (options.command == "compare" and options.config is not None)
        or (options.command == "data" and options.verb == "build")
    )
    if options.command == "compare" and options.config is None:  # these say how --config's runs are trained
        rest += [f"--{name}" for name in ("jobs", "arms") if getattr(options, name) is not None]
    if rest and not takes_rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command in ("train", "compare", "data") or getattr(options, "trust", None):
        # one's own classes, as `python -m mmalign` finds them; at the end, where they hide no installed package
        sys.path.append(os.getcwd())
    try:
        return _COMMANDS[options.command](options, rest)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"mmalign: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mmalign: interrupted{_way_on(options.command)}", file=sys.stderr)
        return 130


def _way_on(command: str) -> str:
    return {"train": "; go on with --resume", "compare": "; the same command goes on"}.get(command, "")


def _end_on_sigterm(command: str) -> None:
    """Outside of a stage there is nothing to save; within one, its checkpoints take this over."""

    def end(*_: object) -> None:
        print(f"mmalign: terminated{_way_on(command)}", file=sys.stderr)
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)


def _demo(options: argparse.Namespace, rest: list[str]) -> int:
    _end_on_sigterm(options.command)
    from mmalign.training.demo import run_demo

    run_demo(options.data, options.out)
    return 0


def _assets(options: argparse.Namespace, rest: list[str]) -> int:
    from mmalign.assets import commands

    if options.verb == "list":
        commands.list_assets()
    elif options.verb == "fetch":
        commands.fetch(options.names)
    else:
        commands.path(options.name)
    return 0


def _data(options: argparse.Namespace, rest: list[str]) -> int:
    from mmalign.data import commands

    if options.verb == "build":
        from mmalign.training.yaml_config import parse_overrides

        print(commands.build(options.source, options.out, **parse_overrides(rest)))
    elif options.verb == "index":
        for split, found in commands.index(options.directory, options.tolerate).items():
            print("".join(f"{fault}\n" for fault in found.faults), end="")
            print(f"{split}: {found.samples} samples in {len(found.shards)} tars, {len(found.faults)} faults")
            print("".join(f"{shard.name} holds no samples\n" for shard in found.shards if not shard.samples), end="")
    elif options.verb == "card":
        print(commands.card(options.directory))
    else:
        faults = commands.check(options.directory)
        print("".join(f"{fault}\n" for fault in faults) + f"{options.directory}: {len(faults)} faults")
        return 1 if faults else 0
    return 0


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from mmalign.training.yaml_config import parse_overrides, read_config

    raw = read_config(options.config, parse_overrides(rest), options.arm)
    from mmalign.training.config import check_config

    config = check_config(raw)
    if options.print_config:
        import yaml

        print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
        return 0
    _end_on_sigterm(options.command)
    from mmalign.training.run import train

    train(config, options.out or Path("runs") / config["name"], resume=options.resume)
    return 0


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from mmalign.evaluation.commands import evaluate
    from mmalign.training.trust import trusting

    patterns = _patterns(options.modalities)
    with trusting(options.trust):
        return evaluate(
            options.checkpoint, options.data, options.split, patterns, options.gallery, options.out, options.device
        )


def _patterns(entries: list[str]) -> dict[str, str]:
    """NAME=PATTERN, … as a mapping."""
    for entry in entries:
        if not all(entry.partition("=")):
            raise ValueError(f"--modalities {entry}: write it as NAME=PATTERN, e.g. text=captions[*]")
    return dict(entry.split("=", 1) for entry in entries)


def _search(options: argparse.Namespace, rest: list[str]) -> int:
    from mmalign.evaluation.search_command import search
    from mmalign.training.trust import trusting

    with trusting(options.trust):
        return search(
            options.checkpoint,
            options.data,
            options.split,
            text=options.text,
            file=options.file,
            modality=options.modality,
            query_modality=options.query_modality,
            patterns=_patterns(options.modalities),
            top=options.top,
            index=options.index,
            device=options.device,
        )


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    from mmalign.export.commands import export
    from mmalign.training.trust import trusting

    with trusting(options.trust):
        print(export(options.checkpoint, options.out))
    return 0


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    from mmalign.report.commands import report

    print(report(options.runs, options.out))
    return 0


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    from mmalign.training import compare

    if options.config is None:
        compare.compare_runs(options.runs, options.out or Path("runs/compare"), options.results)
    else:
        from mmalign.training.yaml_config import ConfigError, parse_overrides

        if options.runs:  # argparse takes the value of an unknown option for one
            raise ConfigError(f"{options.runs[0]}: beside --config no run is named; overrides are written --KEY=VALUE")
        _end_on_sigterm(options.command)
        arms = compare.read_arms(options.config, parse_overrides(rest), options.arms)
        out = options.out or Path("runs") / options.config.stem
        compare.compare_runs(arms.train_missing(out, options.jobs or 1), out, options.results)
    return 0


def _bench(options: argparse.Namespace, rest: list[str]) -> int:
    from mmalign.bench import commands

    if options.list:
        commands.list_benchmarks()
        return 0
    return commands.bench(options.names, options.growth, options.out, options.threads, options.scale, options.device)


_COMMANDS = {
    "demo": _demo,
    "assets": _assets,
    "data": _data,
    "train": _train,
    "evaluate": _evaluate,
    "search": _search,
    "export": _export,
    "report": _report,
    "compare": _compare,
    "bench": _bench,
}
