"""The group of commands on checkpoints."""

from __future__ import annotations

import typer

from parity.commands.frame import examples
from parity.commands.weights import diff, inspect, key_map, match, verify

app = typer.Typer(
    help="Say what is in checkpoints, what differs, and which tensor is which.", no_args_is_help=True,
    rich_markup_mode=None,
    epilog=examples(
        "parity weights inspect model.safetensors", "parity weights match original/ port/ -o match.json",
    ),
)  # fmt: skip
app.command(epilog=inspect.EPILOG, short_help="Say what is in a checkpoint.")(inspect.inspect)
app.command(epilog=diff.EPILOG, short_help="Compare keys and shapes of two checkpoints.")(diff.diff)
app.command("verify", epilog=verify.EPILOG, short_help="Check a conversion, tensor by tensor.")(verify.verify_command)
app.command("match", epilog=match.EPILOG, short_help="Find which tensor is which, by value.")(match.match)
app.command("map", epilog=key_map.EPILOG, short_help="Make a key map of a report of `match`.")(key_map.key_map)
