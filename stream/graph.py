"""A topology as a Mermaid drawing."""

from __future__ import annotations

import math

from stream.topology import RegistryModel, Topology

__all__ = ["mermaid"]


def mermaid(topology: Topology) -> str:
    """A left-to-right flowchart: exchange, stream, detectors, rule, sink, and where dead letters go."""
    source, rule, sink = topology.source, topology.alert, topology.sink
    lines = [
        "flowchart LR",
        f'  exchange(["{_text(source.exchange)}<br/>{_text(", ".join(source.bindings))}"]) --> readings',
        f'  readings[("stream mmlw.readings.{topology.name}")] --> decode',
        f'  decode["{len(source.sensors)} sensors<br/>{_text(", ".join(source.names[:6]))}'
        f'{" …" if len(source.names) > 6 else ""}"]',
        '  decode -. cannot be used .-> dead(["mmlw.deadletters"])',
    ]
    if topology.features:
        names = [_text(name) for name in topology.features]
        more = " …" if len(names) > 6 else ""
        lines.append(f'  decode --> features["{len(names)} features<br/>{", ".join(names[:6])}{more}"]')
    for number, (name, spec) in enumerate(topology.detectors.items()):
        derived = set(topology.inputs(name)) - set(source.names)
        seen = "features" if derived else "decode"
        if isinstance(spec, RegistryModel):
            lines.append(f'  {seen} --> d{number}[["{name}<br/>{_text(spec.model)}"]] --> rule')
            lines.append(f"  mlflow[(MLflow)] -. weights .-> d{number}")
        else:
            lines.append(f'  {seen} --> d{number}["{name}<br/>{_text(spec.kind)}, learns"] --> rule')
    early = rule.at_once is not None and rule.at_once < math.inf
    at_once = f" (1 at {rule.at_once:g} times the threshold)" if early else ""
    after = f"open after {rule.hold}{at_once}, close after {rule.close_after}"
    lines += [
        f'  rule{{"{after}"}} --> alerts(["{_text(sink.exchange)}"])',
        f'  control(["mmlw.control"]) -. control.{topology.name}.* .-> rule',
    ]
    return f"%% {topology.name}: {topology.description}\n" + "\n".join(lines)


def _text(value: str) -> str:
    """Mermaid takes HTML entities for what would end a label."""
    return value.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;")
