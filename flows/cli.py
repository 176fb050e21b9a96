"""The command line. Only what ``--help`` needs is imported here; each command's work is in ``flows/commands``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

EXIT_CODES = """
Exit codes: 0 done; 1 unexpected error; 2 a setting, parameter or method name that can not be used;
3 something is wrong with the data; 4 a stage failed; 5 a stored version, model or result is missing or damaged;
6 a promotion was refused; 7 a server did not start or does not answer; 130 interrupted.
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

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables for people.")]


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
    as_json: Json = False,
) -> None:
    """Run the whole chain: validate, clean labels, pretrain, adapt, unlearn, compress, register.

    What finished before is taken from the cache; after a failure the same command continues.
    """
    from flows.commands.run import run_lifecycle

    run_lifecycle(data, config, override or [], seed, refresh or [], explain_cache, show_config, as_json)


@app.command()
def methods(
    stage: Annotated[str | None, typer.Argument(help="One stage only: validate, label_noise, pretrain, ...")] = None,
    as_json: Json = False,
) -> None:
    """List the methods to choose from: what each is for, its paper and year."""
    from flows.commands.methods import show_methods

    show_methods(stage, as_json)


@app.command()
def reproduce(
    method: Annotated[str, typer.Argument(help="Name of a method; `clearwell methods` lists them.")],
    seeds: Annotated[str, typer.Option(help="Random states, separated by commas.")] = "0,1,2",
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Write benchmarks/results/METHOD.json when the seeds are 0,1,2.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure a method on real data against its bounds, with baselines. Takes minutes."""
    from flows.commands.reproduce import reproduce_method

    reproduce_method(method, seeds, keep, as_json)


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
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger.")] = "",
    as_json: Json = False,
) -> None:
    """Give a model version an alias. It becomes champion only if every gate of mlflow.yaml holds."""
    from flows.commands.registry import promote_version

    promote_version(name, version, to, reason, as_json)


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
    """Fetch the data version that data.dvc names."""
    from flows.commands.data import pull_data

    pull_data()


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
