"""``clearwell reproduce``."""

from __future__ import annotations


def reproduce_method(method: str, seeds: str, keep: bool, as_json: bool) -> None:
    """Measure, print the table of checks, write the result."""
    from benchmarks.evidence import SEEDS, collect
    from flows.commands.console import out, print_json, print_table
    from infra.errors import ConfigurationError
    from models.registry import UnknownMethodError, get_method

    try:
        get_method(method)
    except UnknownMethodError as error:
        raise ConfigurationError(str(error)) from None
    try:
        chosen = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise ConfigurationError(f"--seeds takes whole numbers separated by commas, got {seeds!r}.") from None
    evidence = collect(method, chosen)
    path = evidence.write() if keep and chosen == SEEDS else None
    if as_json:
        print_json(evidence.as_dict())
        return
    rows = [
        {"check": c.name, "bound": c.bound, "measured": c.measured, "verdict": "holds" if c.holds else "falls short"}
        for c in evidence.checks
    ]
    rows += [
        {"check": item["name"], "bound": "", "measured": "", "verdict": f"not run: {item['reason']}"}
        for item in evidence.missing
    ]
    print_table(f"{method}: seeds {', '.join(map(str, chosen))}", rows)
    for name, table in evidence.tables.items():
        print_table(name, table)
    for check in evidence.checks:
        if check.note:
            out.print(f"{check.name}: {check.note}")
    if path is not None:
        out.print(f"Written to {path}")
