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
app.command(epilog=inspect.EPILOG)(inspect.inspect)
app.command(epilog=diff.EPILOG)(diff.diff)
app.command("verify", epilog=verify.EPILOG)(verify.verify_command)
app.command("match", epilog=match.EPILOG)(match.match)
app.command("map", epilog=key_map.EPILOG)(key_map.key_map)
