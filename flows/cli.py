"""The command line. Only what ``--help`` needs is imported here; each command's work is in ``flows/commands``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

EXIT_CODES = """
Exit codes: 0 done; 1 unexpected error; 2 a setting, parameter or method name that can not be used;
3 something is wrong with the data; 4 a stage failed; 5 a stored version, model or result is missing or damaged;
6 a promotion was refused; 7 a server did not start or does not answer; 8 an erasure could not be finished or proven;
130 interrupted.
"""

app = typer.Typer(
    name="clearwell",
    help="From a dataset nobody fully trusts to a small, registered model, with evidence for every step.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(
    name="data", help="Bring data in, look at what is wrong with it, get versions back.", no_args_is_help=True
)
app.add_typer(data_app)
ledger_app = typer.Typer(name="ledger", help="The audit trail: what happened to data and models.", no_args_is_help=True)
app.add_typer(ledger_app)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables for people.")]
Where = Annotated[
    str | None, typer.Option("--runner", help="Where mapped work runs: local, ray, or ray://HOST:PORT of a cluster.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes at once.")]


@app.command(epilog=EXIT_CODES)
def run(
    data: Annotated[
        str | None,
        typer.Option(help="A dataset's name, NAME@VERSION, a Parquet or CSV file, or a folder of class-named folders."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file: stage name -> fields.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Set one field; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random state of every stage.")] = None,
    refresh: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="Compute a stage again though it is cached; 'all' for all."),
    ] = None,
    explain_cache: Annotated[
        bool, typer.Option("--explain-cache", help="Say of each stage why it ran, or why it did not have to.")
    ] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every parameter with its value, and stop.")
    ] = False,
    here: Annotated[
        bool, typer.Option("--here", help="Run in this process though the stack is up; it keeps track all the same.")
    ] = False,
    runner: Where = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Run the whole chain: validate, clean labels, pretrain, adapt, unlearn, compress, register.

    While the stack is up, its worker runs it, and this command follows. What finished before is taken from the cache;
    after a failure the same command continues.
    """
    from flows.commands.run import run_lifecycle
    from infra.runner import use_runner

    use_runner(runner, workers)
    run_lifecycle(
        data,
        config,
        override or [],
        seed,
        refresh or [],
        explain_cache,
        show_config,
        here or bool(runner or workers),
        as_json,
    )


@app.command()
def methods(
    stage: Annotated[str | None, typer.Argument(help="One stage only: validate, label_noise, pretrain, ...")] = None,
    goal: Annotated[str | None, typer.Option(help="Of selection: distribution matching, or diversification.")] = None,
    utility: Annotated[str | None, typer.Option(help="What it values: quality, gradient, distance, ...")] = None,
    unit: Annotated[str | None, typer.Option(help="What it decides about: data point, data set, token, ...")] = None,
    mechanism: Annotated[str | None, typer.Option(help="How it decides: threshold, ranking, sampling, ...")] = None,
    stage_of_training: Annotated[str | None, typer.Option(help="Which training the data is for.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods to choose from: what each is for, its paper and year.

    The options narrow the list to methods that select data and whose entry in the taxonomy holds that text.
    """
    from flows.commands.methods import show_methods

    taxonomy = {"goal": goal, "utility": utility, "unit": unit, "mechanism": mechanism}
    show_methods(stage, taxonomy | {"stage_of_training": stage_of_training}, as_json)


@app.command()
def reproduce(
    method: Annotated[str, typer.Argument(help="Name of a method; `clearwell methods` lists them.")],
    seeds: Annotated[str, typer.Option(help="Random states, separated by commas.")] = "0,1,2",
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Write benchmarks/results/METHOD.json when the seeds are 0,1,2.")
    ] = True,
    runner: Where = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Measure a method on real data against its bounds, with baselines. Takes minutes."""
    from flows.commands.reproduce import reproduce_method
    from infra.runner import use_runner

    use_runner(runner, workers)
    reproduce_method(method, seeds, keep, as_json)


@app.command()
def sweep(
    stage: Annotated[str, typer.Argument(help="validate, label_noise or pretrain.")],
    data: Annotated[list[str], typer.Argument(help="Datasets: names, NAME@VERSION, or paths.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE,VALUE", help="Values to try of a field of the stage; may be repeated."),
    ] = None,
    runner: Where = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Run one stage on every dataset with every combination of values, a row each."""
    from flows.commands.scale import run_sweep
    from infra.runner import use_runner

    use_runner(runner, workers)
    run_sweep(stage, data, vary or [], as_json)


@app.command(epilog=EXIT_CODES)
def compare(
    stage: Annotated[str, typer.Argument(help="adapt, compress, curate, discover, label_noise or pretrain.")],
    data: Annotated[str, typer.Option(help="A dataset's name, NAME@VERSION, or a path to your own data.")] = "scans",
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME", help="Only these methods; baselines always take part. Default: all that apply."
        ),
    ] = "",
    budget: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time each candidate has, on one thread.")
    ] = 120.0,
    seed: Annotated[int, typer.Option(min=0, help="Random state of the split, of what is planted, of candidates.")] = 0,
    rows: Annotated[int, typer.Option(min=20, help="Rows taken at most, drawn at random.")] = 5000,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Candidates at once; by default one a core.")
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help="Run on this machine though the stack is up; it keeps track all the same.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run every method of a stage on the same data, and say which to take.

    All methods that apply and some plain baselines get the same rows, the same time and one thread each, in
    processes of their own, and are judged by the same measures on what was hidden from them. None is tuned. You get a
    leaderboard, a page with a figure, an MLflow run a candidate, and a recommendation that says why, what it costs
    against the runner-up, and when a baseline wins. What fails, takes too long or does not apply is in the
    table with the reason.
    """
    from flows.commands.compare import run_compare
    from infra.runner import use_runner

    use_runner(None, workers)
    run_compare(stage, data, methods, budget, seed, rows, here or workers is not None, as_json)


@app.command(epilog=EXIT_CODES)
def curate(
    data: Annotated[str, typer.Argument(help="A dataset's name, NAME@VERSION, or a path.")],
    method: Annotated[
        str | None,
        typer.Option(help="Registered name (`clearwell methods curate`). Default: stratified-subset."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Rows to keep: a fraction up to 1, or above 1 a number of rows. Default: 0.3."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of the training it is for: the budget then counts the rows seen in all of them."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="NAME@ALIAS or NAME@VERSION of a registered model whose network embeds the rows.")
    ] = "",
    trust_labels: Annotated[
        bool, typer.Option("--trust-labels", help="Take the labels as given; do not look for wrong ones first.")
    ] = False,
    wanted: Annotated[
        Path | None,
        typer.Option(
            help="For survey: file with one text a line, like those wanted; the budget is drawn towards them."
        ),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="For survey: file of evaluation texts, one a line, that must not be trained on; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random state.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the stage, such as curve=[]."),
    ] = None,
    runner: Where = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Choose rows to train on within a budget, and measure what fewer rows cost beside chance.

    Writes a version with the columns selected, sample_weight, selection_score and selection_reason. No row is dropped;
    in `clearwell run --set curate.enabled=true` later stages train on the selected ones.

    Texts have a method of their own, `--method survey`: heuristics of quality, exact and near duplicates, drawing
    towards texts like those wanted, and keeping evaluation texts out.
    """
    from flows.commands.curate import run_curate
    from infra.runner import use_runner

    use_runner(runner, workers)
    run_curate(
        data,
        method,
        budget,
        epochs,
        encoder,
        trust_labels,
        wanted,
        tuple(evaluation or ()),
        seed,
        override or [],
        as_json,
    )


@app.command(epilog=EXIT_CODES)
def plan(
    budget: Annotated[
        int, typer.Option(metavar="ROWS", help="Rows that training sees; a row seen twice counts twice.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(help="A dataset's name, NAME@VERSION, or a path; several are a pool each. Default: scans."),
    ] = None,
    pools: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column whose values are the pools; its quantiles if it is numeric.")
    ] = "",
    score: Annotated[
        str, typer.Option(metavar="NAME", help="Without pools: cut the rows by what this selector scores them.")
    ] = "el2n",
    quantiles: Annotated[int, typer.Option(min=2, max=8, help="Pools made of a score or a numeric column.")] = 4,
    pilot: Annotated[int, typer.Option(min=40, metavar="ROWS", help="Rows of each pool for the pilot runs.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Random state of pilots and trainings.")] = 0,
    runner: Where = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Say what to train on for a budget: which pools, how much of each, how many passes, and what it would reach.

    Small runs on every pool alone (filtering-laws) and on mixtures of them (projektor) tell what each choice of pools
    would reach. You get a table and a figure: the recommended choice, its predicted accuracy with an interval, and
    beside it what training on it and on two other choices really reached.

    Pools are the values of a column (--pools source), several datasets (--data a --data b), or quantiles of a score.
    The learner is a network of one hidden layer on the rows as numbers; rows are judged on the split test.
    """
    from flows.commands.plan import run_plan
    from infra.runner import use_runner

    use_runner(runner, workers)
    run_plan(tuple(data or ("scans",)), budget, pools, score, quantiles, pilot, seed, as_json)


@app.command(epilog=EXIT_CODES)
def discover(
    data: Annotated[str, typer.Argument(help="A dataset's name, NAME@VERSION, or a path.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help="Registered name (`clearwell methods discover`); may be repeated. Default: faster-pam."),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(min=1, help="How many groups; gcd-gmm starts from so many. By default that is found out."),
    ] = None,
    known: Annotated[
        list[str] | None, typer.Option(help="A class whose labels the method may see; may be repeated. Default: all.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="NAME@ALIAS or NAME@VERSION of a registered model whose network embeds the rows.")
    ] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Random state.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the stage, such as parameters.epochs=5."),
    ] = None,
    runner: Where = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Group rows: how many groups there are, which rows belong together, and what to call them.

    Writes a version of NAME-clustered with the columns cluster, cluster_name and cluster_confidence; figures go to
    the run in MLflow. `clearwell compare discover` tells which method suits the data.
    """
    from flows.commands.discover import run_discover
    from infra.runner import use_runner

    use_runner(runner, workers)
    run_discover(
        data, tuple(method or ()), clusters, tuple(known) if known else None, encoder, seed, override or [], as_json
    )


@app.command()
def embed(
    data: Annotated[str, typer.Argument(help="A dataset's name, NAME@VERSION, or a path.")],
    model: Annotated[str, typer.Option(help="NAME@ALIAS or NAME@VERSION; by default the dataset's champion.")] = "",
    runner: Where = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write what a model's network makes of every row as a dataset of its own, shard by shard."""
    from flows.commands.scale import run_embed
    from infra.runner import use_runner

    use_runner(runner, workers)
    run_embed(data, model, as_json)


@app.command()
def report(
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Show the summary of the latest run, and where its page is."""
    from flows.commands.report import show_report

    show_report(open_page, as_json)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    version: Annotated[str | None, typer.Argument(help="Version; by default the candidate.")] = None,
    to: Annotated[str, typer.Option(help="Alias to give.")] = "champion",
    approve_by: Annotated[
        str, typer.Option(metavar="WHO", help="The person who approves; needed where mlflow.yaml requires approval.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger. Needed with --approve-by.")] = "",
    as_json: Json = False,
) -> None:
    """Give a model version an alias. It becomes champion only if every gate of mlflow.yaml holds."""
    from flows.commands.registry import promote_version

    promote_version(name, version, to, reason, approve_by, as_json)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    version: Annotated[str | None, typer.Argument(help="Version; by default the candidate.")] = None,
    as_json: Json = False,
) -> None:
    """Say why a version may or may not become champion, verdict by verdict. Nothing is changed."""
    from flows.commands.registry import explain_version

    explain_version(name, version, as_json)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Registered model.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger.")] = "",
    as_json: Json = False,
) -> None:
    """Give the champion alias back to the version that held it before."""
    from flows.commands.registry import roll_back

    roll_back(name, reason, as_json)


@app.command()
def history(name: Annotated[str, typer.Argument(help="Registered model.")], as_json: Json = False) -> None:
    """Show versions, aliases, and what the ledger says happened to them."""
    from flows.commands.registry import show_history

    show_history(name, as_json)


@app.command()
def forget(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of rows to forget.")] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--ids", metavar="FILE|ID", help="An id, or a file: one id a line, or Parquet or CSV with `id`."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Their dataset; by default every one that has them.")] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in ledger and certificate.")] = "",
    with_copies: Annotated[
        bool, typer.Option("--with-copies", help="Forget rows of the same bytes under other ids too.")
    ] = False,
    keep_copies: Annotated[bool, typer.Option("--keep-copies", help="Let such rows stay.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for consent.")] = False,
    accept_no_champion: Annotated[
        bool, typer.Option("--accept-no-champion", help="Go on when no model passes the gates; the alias falls away.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an erasure that was cut short.")] = False,
    verify: Annotated[
        Path | None, typer.Option(metavar="CERTIFICATE", help="Search again for what a certificate says is gone.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Forget rows: new data version, unlearnt or retrained models, every byte deleted, searched for, certified."""
    from flows.commands import forget as command

    if verify is not None:
        command.verify_certificate(verify, as_json)
    elif resume:
        command.resume(accept_no_champion, as_json)
    else:
        copies: Any = "erase" if with_copies else "keep" if keep_copies else "ask"
        given = [*(ids or ()), *(file or ())]
        command.forget_rows(given, data, reason, copies, accept_no_champion, dry_run, yes, as_json)


@app.command()
def deploy() -> None:
    """Register the flows of prefect.yaml with the Prefect server; `clearwell up` does it, too."""
    from flows.commands.deploy import deploy_and_say

    deploy_and_say()


@app.command()
def score(
    data: Annotated[str, typer.Argument(help="A dataset's name, NAME@VERSION, or a path to your own data.")],
    model: Annotated[
        str, typer.Option(help="NAME@ALIAS or NAME@VERSION; by default the champion of the dataset.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Let a registered model answer for every row; rows it does not know are flagged."""
    from flows.commands.score import score_data

    score_data(data, model, as_json)


@app.command()
def drift(
    where: Annotated[str, typer.Argument(help="Folder of the project, or prefix in the data bucket.")],
    model: Annotated[str, typer.Option(help="NAME, NAME@ALIAS or NAME@VERSION.")] = "scans-classifier",
    as_json: Json = False,
) -> None:
    """Compare what landed since the last look with what the champion was made for. Exit code 0, drift or not."""
    from flows.commands.drift import look

    look(where, model, as_json)


@app.command(epilog=EXIT_CODES)
def serve(
    model: Annotated[
        str, typer.Argument(metavar="NAME@ALIAS", help="Registered model; the alias is champion if left out.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 5001,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at who holds the alias.")] = 2.0,
) -> None:
    """Answer predictions as MLflow's scoring server does; a new champion takes over without a dropped request."""
    from flows.commands.serve import serve_model

    serve_model(model, port, every)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the installation and the project, and say what to mend."""
    from flows.commands.doctor import examine

    examine(as_json)


@app.command()
def up(
    deployments: Annotated[bool, typer.Option(help="Register the flows as deployments.")] = True,
) -> None:
    """Start the stack: PostgreSQL, object store, Prefect, MLflow and a worker, on this machine only."""
    from flows.commands.stack import start_stack

    start_stack(deployments)


@app.command()
def down() -> None:
    """Stop the stack. Its data stays."""
    from flows.commands.stack import stop_stack

    stop_stack()


@app.command()
def status(as_json: Json = False) -> None:
    """Show each server of the stack: address, health, version, memory."""
    from flows.commands.stack import show_status

    show_status(as_json)


@app.command()
def logs(
    part: Annotated[str, typer.Argument(help="postgres, objects, prefect, mlflow, worker or supervisor.")],
    lines: Annotated[int, typer.Option(min=1, help="How many lines from its end.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it is written.")] = False,
) -> None:
    """Show the log of one server of the stack."""
    from flows.commands.stack import show_logs

    show_logs(part, lines, follow)


@app.command()
def env() -> None:
    """Print what a shell needs to use prefect, mlflow and boto3 with the stack: eval "$(clearwell env)"."""
    from flows.commands.stack import show_environment

    show_environment()


@app.command()
def backup(target: Annotated[Path, typer.Argument(help="File to write; it must not exist.")]) -> None:
    """Write everything the project keeps to one file. A running stack pauses for it."""
    from flows.commands.stack import back_up

    back_up(target)


@app.command()
def restore(source: Annotated[Path, typer.Argument(help="File that `clearwell backup` wrote.")]) -> None:
    """Put a backup in the place of what is there, which is moved aside."""
    from flows.commands.stack import restore as put_back

    put_back(source)


@app.command("rotate-credentials")
def rotate_credentials() -> None:
    """Give every server of the stack a new password. A running stack starts anew for it."""
    from flows.commands.stack import rotate_credentials as rotate

    rotate()


@data_app.command("pull")
def data_pull() -> None:
    """Fetch the data version that data.dvc names and, while the stack is up, the versions in its object store."""
    from flows.commands.data import pull_data

    pull_data()


@data_app.command("push")
def data_push(
    data: Annotated[str | None, typer.Argument(help="Dataset, or NAME@VERSION; by default all versions.")] = None,
) -> None:
    """Send dataset versions to the stack's object store."""
    from flows.commands.data import push_data

    push_data(data)


@data_app.command("import")
def data_import(
    path: Annotated[Path, typer.Argument(help="Parquet or CSV file or folder, or a folder of class-named folders.")],
    name: Annotated[str | None, typer.Option(help="Name of the dataset; by default the path's.")] = None,
    as_json: Json = False,
) -> None:
    """Make a dataset version of your own data."""
    from flows.commands.data import import_data

    import_data(path, name, as_json)


@data_app.command("check")
def data_check(
    data: Annotated[str, typer.Argument(help="Dataset name, NAME@VERSION, or a path.")], as_json: Json = False
) -> None:
    """Show what is wrong with data: row numbers, ids and reasons. Nothing is changed."""
    from flows.commands.data import check_data

    check_data(data, as_json)


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """List the dataset versions of this project."""
    from flows.commands.data import list_data

    list_data(as_json)


@data_app.command("restore")
def data_restore(
    version: Annotated[str, typer.Argument(help="NAME@VERSION as reports print it.")],
    to: Annotated[Path, typer.Option(help="Folder to write to; must be empty or not exist.")],
) -> None:
    """Write the shards of a version to a folder."""
    from flows.commands.data import restore_data

    restore_data(version, to)


@ledger_app.command("verify", epilog=EXIT_CODES)
def ledger_verify(
    expect: Annotated[
        str | None, typer.Option(metavar="HEAD", help="A head noted earlier: its entry must still be there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that no entry was changed or removed. Exits with 5 if one was."""
    from flows.commands.registry import verify_ledger

    verify_ledger(expect, as_json)


@ledger_app.command("show")
def ledger_show(
    kind: Annotated[str | None, typer.Option(help="Entries of one kind: data, promoted, alias-drift, ...")] = None,
    last: Annotated[int, typer.Option(min=1, help="How many, counted from the end.")] = 50,
    as_json: Json = False,
) -> None:
    """List the latest entries."""
    from flows.commands.registry import show_ledger

    show_ledger(kind, last, as_json)


def main() -> None:
    """Entry point: errors of clearwell become one message and an exit code."""
    try:
        app()
    except SystemExit as end:
        if end.code == 130:
            print("Interrupted. What finished is kept; the same command continues.", file=sys.stderr)
        raise
    except Exception as error:
        from infra.errors import ClearwellError

        if not isinstance(error, ClearwellError):
            raise
        print(f"clearwell: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
