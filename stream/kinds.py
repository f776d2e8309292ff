"""`mmlw detectors`: every kind of detector, what it is for, when it fails, and its settings."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from typing import Any

import click

__all__ = ["add_to"]


def add_to(group: click.Group) -> None:
    """Add the command to the command line."""
    group.add_command(detectors)


@click.command()
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def detectors(kind: str | None, as_json: bool) -> None:
    """List the kinds of detectors, or explain one.

    KIND is a name such as adaptive_z. Online kinds learn as they go, and stand in a topology under
    `detectors`; trained ones stand under `fit` of a registry model.
    """
    from detectors import registry
    from stream.errors import ConfigError, Problem
    from stream.validation import suggest

    known = _kinds()
    for other in registry.installed():
        try:
            known[other] = ("online", registry.load_installed(other))
        except ValueError as error:
            click.echo(str(error), err=True)
    if kind is None:
        _list(known, as_json)
        return
    if kind not in known:
        raise ConfigError([Problem("KIND", f'no detector is called "{kind}"{suggest(kind, known)}')])
    how, recipe = known[kind]
    settings = _settings(recipe)
    if as_json:
        told = {"kind": kind, "learns": how, "description": inspect.getdoc(recipe), "settings": settings}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{kind} ({how})\n\n{inspect.getdoc(recipe)}\n\nSettings")
    for name, (default, text) in settings.items():
        click.echo(f"  {name}: {default}")
        click.echo(textwrap.indent(textwrap.fill(text, 96), "      ") if text else "", nl=bool(text))


def _kinds() -> dict[str, tuple[str, type[Any]]]:
    from detectors import registry

    online = {kind: ("online", recipe) for kind, recipe in registry.ONLINE.items()}
    trained = {kind: ("trained", recipe) for kind, recipe in registry.TRAINABLE.items()}
    found: dict[str, tuple[str, type[Any]]] = {**online, **trained}
    return {kind: found[kind] for kind in sorted(found)}


def _list(known: dict[str, tuple[str, type[Any]]], as_json: bool) -> None:
    lines = {
        kind: (how, (inspect.getdoc(recipe) or "").split("\n")[0]) for kind, (how, recipe) in known.items()
    }
    if as_json:
        click.echo(
            json.dumps([{"kind": kind, "learns": how, "does": does} for kind, (how, does) in lines.items()])
        )
        return
    width = max(map(len, lines))
    for heading, wanted in (
        ("Online: they learn as they go", "online"),
        ("Trained before they run", "trained"),
    ):
        click.echo(heading)
        for kind, (how, does) in lines.items():
            if how == wanted:
                click.echo(f"  {kind:<{width}}  {does}")
    click.echo("\nmmlw detectors KIND explains one: what it is for, when it fails, its settings.")


def _settings(recipe: type[Any]) -> dict[str, tuple[str, str]]:
    """Default and description of each setting, in order, from the recipe and what it inherits."""
    import msgspec

    texts: dict[str, str] = {}
    for parent in reversed(recipe.__mro__[:-2]):
        if parent.__module__.startswith("detectors"):
            texts |= _texts(parent)
    return {
        field.name: (_shown(field), texts.get(field.name, "")) for field in msgspec.structs.fields(recipe)
    }


def _texts(recipe: type[Any]) -> dict[str, str]:
    """The text below each setting in the source."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(recipe))).body
    assert isinstance(tree, ast.ClassDef)  # noqa: S101 - for the type checker
    found: dict[str, str] = {}
    name = ""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = inspect.cleandoc(str(node.value.value)).replace("\n", " ")
            name = ""
        else:
            name = ""
    return found


def _shown(field: Any) -> str:
    from stream.validation import default_of

    if field.required:
        return "(needed)"
    default = default_of(field)
    return "none" if default is None else json.dumps(default, default=str)
