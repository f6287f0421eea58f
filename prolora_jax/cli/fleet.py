"""`prolora fleet run | status | compact | verify | retry`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from prolora_jax.adapters.formats.dumping import Reader
from prolora_jax.cli.console import Common, Reporter, out, printable, write_json
from prolora_jax.cli.convert import Format
from prolora_jax.cli.migrate_options import GENERAL, HOW, OUTPUT, WHAT, GroupedOptions, chosen
from prolora_jax.errors import Refusal, UsageError

if TYPE_CHECKING:
    from prolora_jax.catalog.fleet.job import FleetJob
    from prolora_jax.catalog.fleet.local_run import RunShare
    from prolora_jax.io.places.place import FilePlace

COMMON = Common()
OPTIONS = GroupedOptions()
fleet = App(name="fleet", help_format="plaintext")


@fleet.command
def run(
    inputs: Annotated[str, Parameter(group=WHAT)],
    *,
    source: Annotated[str, Parameter(group=WHAT)],
    target: Annotated[str, Parameter(group=WHAT)],
    out_path: Annotated[str, Parameter(name="--out", group=OUTPUT)],
    local: Annotated[int, Parameter(group=GENERAL)] = 1,
    ray: Annotated[str | None, Parameter(group=GENERAL)] = None,
    shard: Annotated[str, Parameter(group=GENERAL)] = "0/1",
    time_limit: Annotated[float, Parameter(group=GENERAL)] = 600.0,
    cache: Annotated[Path | None, Parameter(group=GENERAL)] = None,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT)] = False,
    format: Annotated[Format, Parameter(group=OUTPUT)] = "same",
    for_reader: Annotated[Reader | None, Parameter(name="--for", group=OUTPUT)] = None,
    options: Annotated[GroupedOptions, Parameter(name="*")] = OPTIONS,
    preset: Annotated[Literal["paper"] | None, Parameter(group=HOW)] = None,
    allow_pickle: Annotated[bool, Parameter(negative="", group=WHAT)] = False,
    ignore_license: Annotated[bool, Parameter(negative="", group=WHAT)] = False,
    sidecars: Annotated[bool, Parameter(negative="", group=OUTPUT)] = False,
    strip_metadata: Annotated[bool, Parameter(negative="", group=OUTPUT)] = False,
    common: Annotated[Common, Parameter(name="*", group=GENERAL)] = COMMON,
) -> int:
    """Migrate a catalog by several processes and hosts: folders, s3:// or gs:// URLs.

    The same command again does what is unfinished, also on other hosts at the same time. Exit code
    1: adapters of this run were refused, or are left. SIGTERM ends it within half a minute, with
    exit code 0.

    Args:
        inputs: folder, s3:// or gs:// URL of adapters.
        source: base model the adapters were trained on: folder, single file, hub id or URL.
        target: base model to move them to.
        out_path: folder, s3:// or gs:// URL to write to; it gets the same tree.
        local: worker processes of this host, or of each host of --ray that has no accelerator; an
            adapter that ends its process costs itself alone.
        ray: use the hosts of a Ray cluster: auto for the one that this host belongs to, or
            host:port of its head. All of them must see the same folders, or be given URLs.
        shard: i/n: do the i-th of n parts of the catalog, counted from 0, whoever does the others.
        time_limit: seconds without a sign of life after which a worker is ended, and its adapter
            blamed.
        cache: folder for base models that are fetched from URLs, once for all processes of a host
            [default: beside the store].
        overwrite: replace outputs of others.
        format: as of prolora migrate.
        for_reader: as of prolora migrate.
        preset: as of prolora migrate.
        allow_pickle: as of prolora migrate.
        ignore_license: as of prolora migrate.
        sidecars: as of prolora migrate.
        strip_metadata: as of prolora migrate.
    """
    from prolora_jax.catalog.fleet.job import FleetJob
    from prolora_jax.migration.files import Writing

    given = chosen(options, preset, for_reader)
    format = "peft" if for_reader and format == "same" else format
    writing = Writing(format, strip_metadata, overwrite, allow_pickle, sidecars, ignore_license)
    writing = writing._replace(reader=for_reader)
    places, part = (inputs, out_path, source, target), share_of(local, shard, time_limit, ray)
    store = common.basis_store()  # closed, and cut to its limit, when all workers have ended
    job = FleetJob(*places, given, writing, store.folder, cache, common.processes)
    job = replace(job, shared=store.address.shared, limit=store.limit)
    if part.shards > 1:  # else others may come that are not told of
        job = replace(job, share=(part.shard, part.shards))
    return _run(job, part, common)


def share_of(local: int, shard: str, time_limit: float, ray: str | None = None) -> "RunShare":
    """What `--local`, `--shard`, `--time-limit` and `--ray` say.

    Raises:
        UsageError: one of them cannot be meant.
    """
    from prolora_jax.catalog.fleet.local_run import RunShare

    part, _, parts = shard.partition("/")
    fits = part.isdecimal() and parts.isdecimal() and int(part) < int(parts)
    if not fits or local < 1 or not time_limit > 0:
        raise UsageError(
            f"--shard {shard} --local {local} --time-limit {time_limit:g}: expected i/n with i "
            "from 0 to n - 1, at least one process, and a time; such as --shard 0/4 --local 2",
            code=Refusal.BAD_OPTION,
        )
    return RunShare(local, int(part), int(parts), time_limit, ray)


def _run(job: "FleetJob", share: "RunShare", common: Common) -> int:
    from prolora_jax.catalog.fleet.ending import summary_of_receipts
    from prolora_jax.catalog.fleet.job import is_begun
    from prolora_jax.catalog.fleet.local_run import run_here
    from prolora_jax.cli import catalog_tables
    from prolora_jax.io.places.opening import open_place

    reporter = Reporter(common.quiet)
    with reporter.shown():
        found = run_here(job, share, reporter)
    said = None
    if found.stopped:  # there may be no time to read all receipts
        said = f"Told to stop: {found.left} are left; the same command goes on."
    elif not is_begun(open_place(job.out)):
        said = f"Part {share.shard}/{share.shards} has no adapters, and no other part has begun."
    if said is not None:
        if common.json:
            write_json({"run": found, "summary": None})
        else:
            out().print(said)
        return 0
    summary, records = summary_of_receipts(open_place(job.out))
    if common.json:
        write_json({"run": found, "summary": summary})
    else:
        catalog_tables.show_summary(out(), summary)
        catalog_tables.show_refused(out(), records)
    # What others have done, or earlier runs, is theirs to tell; `status` tells of all.
    return int(bool(found.left or {*found.found} - {"done"}))


@fleet.command
def status(
    place: str,
    *,
    export: Path | None = None,
    report: Path | None = None,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """How far a fleet has come, from its receipts: also while it runs.

    Args:
        place: folder or URL of the outputs.
        export: write all records as a table, too: a name that ends in .csv or .jsonl.
        report: write the page about them: one HTML file.
    """
    from prolora_jax.catalog.fleet.ending import merged_report, summary_of_receipts
    from prolora_jax.cli import catalog_tables
    from prolora_jax.io.outputs.protected import require_ending
    from prolora_jax.io.places.opening import open_place

    require_ending(report, ".html")
    outputs = open_place(place)
    summary, records = summary_of_receipts(outputs)
    if report is not None:
        from prolora_jax.catalog.catalog import write_page_of

        write_page_of(report, summary, records, merged_report(outputs))
    catalog_tables.show_status(summary, records, export, common)
    return 0


@fleet.command
def compact(place: str, *, common: Annotated[Common, Parameter(name="*")] = COMMON) -> int:
    """Put all receipts into one Parquet file, which is read instead of them from then on.

    Args:
        place: folder or URL of the outputs.
    """
    from prolora_jax.catalog.fleet.receipts import compact as put_together

    count = put_together(_outputs(place))
    if common.json:
        write_json({"receipts": count})
    else:
        out().print(f"{count} receipts are in one table.")
    return 0


@fleet.command
def verify(place: str, *, common: Annotated[Common, Parameter(name="*")] = COMMON) -> int:
    """Read every output and compare it with its receipt.

    Numbers are recomputed by prolora verify, from a folder.

    Args:
        place: folder or URL of the outputs.
    """
    from prolora_jax.catalog.fleet.checking import check_outputs

    outputs, reporter = _outputs(place), Reporter(common.quiet)
    with reporter.shown():
        check = check_outputs(outputs, reporter)
    if common.json:
        write_json({"ok": not check.problems, **vars(check)})
    else:
        out().print(f"{check.whole} of {check.outputs} outputs are as they were written.")
        for problem in check.problems.values():
            out().print(printable(problem))
    return int(bool(check.problems))


@fleet.command
def retry(
    place: str,
    *,
    quarantined: Annotated[bool, Parameter(negative="")] = False,
    damaged: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Have the next run try again what it would leave alone.

    Args:
        place: folder or URL of the outputs.
        quarantined: adapters that have ended workers.
        damaged: outputs that are not as they were written; reads all of them.
    """
    from prolora_jax.catalog.fleet.checking import retry_damaged, retry_quarantined

    if not (quarantined or damaged):
        raise UsageError("fleet retry needs --quarantined or --damaged", code=Refusal.BAD_OPTION)
    outputs, names, reporter = _outputs(place), [], Reporter(common.quiet)
    if quarantined:
        names += retry_quarantined(outputs)
    if damaged:
        with reporter.shown():
            names += retry_damaged(outputs, reporter)
    if common.json:
        write_json({"again": names})
    else:
        out().print(f"{len(names)} adapters are done again by the next run.")
    return 0


def _outputs(place: str) -> "FilePlace":
    """The place of a fleet's outputs, and no other: in that nothing is read or written."""
    from prolora_jax.catalog.fleet.job import read_note
    from prolora_jax.io.places.opening import open_place

    outputs = open_place(place)
    read_note(outputs)
    return outputs
