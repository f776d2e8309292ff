"""Topology files: equal objects from YAML and Python, and every problem at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors import registry
from stream.config import dump_yaml, load, load_all
from stream.errors import ConfigError
from stream.graph import mermaid
from stream.rules import AlertRule
from stream.topology import RegistryModel, Sensor, Source, Topology

SHIPPED = sorted(
    path
    for path in (Path(__file__).resolve().parents[2] / "topologies").iterdir()
    if path.suffix in (".yaml", ".py") and path.name != "__init__.py"
)

YAML = """
name: pumps
source:
  sensors: [pressure, {name: flow, unit: l/min, minimum: 0, maximum: 2000}]
  keep_age: 3d
  keep_bytes: 2GB
  linger: 5ms
detectors:
  spike: {kind: adaptive_z, half_life: 500, threshold: 8}
  trees: {river: HalfSpaceTrees, settings: {n_trees: 5}}
  type:
    model: models:/pump-pca@champion
    fit: {kind: pca}
alert: {hold: 2, cooldown: 10m, severities: {low: 1.0, high: 3}}
operators: [ann]
"""
PYTHON = """
from detectors import registry
from stream.rules import AlertRule
from stream.topology import RegistryModel, Sensor, Source, Topology

topology = Topology(
    name="pumps",
    source=Source(
        sensors=("pressure", Sensor("flow", unit="l/min", minimum=0, maximum=2000)),
        keep_age=3 * 86400, keep_bytes=2_000_000_000, linger=0.005,
    ),
    detectors={
        "spike": registry.ONLINE["adaptive_z"](half_life=500, threshold=8),
        "trees": registry.ONLINE["river"](river="HalfSpaceTrees", settings={"n_trees": 5}),
        "type": RegistryModel(model="models:/pump-pca@champion", fit=registry.TRAINABLE["pca"]()),
    },
    alert=AlertRule(hold=2, cooldown=600, severities={"low": 1.0, "high": 3}),
    operators=("ann",),
)
"""


def problems(tmp_path: Path, text: str, name: str = "t.yaml") -> list[str]:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_all(path)
    return [str(problem).removeprefix(f"{path}") for problem in caught.value.problems]


def test_yaml_and_python_load_as_equal_objects(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(YAML)
    (tmp_path / "t.py").write_text(PYTHON)
    assert load(tmp_path / "t.yaml") == load(tmp_path / "t.py")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_topology_survives_a_round_trip_through_yaml(path: Path, tmp_path: Path) -> None:
    for topology in load_all(path):
        (tmp_path / "copy.yaml").write_text(dump_yaml(topology))
        assert load(tmp_path / "copy.yaml") == topology


def test_three_topologies_are_shipped() -> None:
    assert {"water_flow.yaml", "shuttle.yaml", "pump_line.py"} <= {path.name for path in SHIPPED}


def test_example_on_the_way_from_scores_to_alerts_loads(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "detection.md").read_text(encoding="utf-8")
    example = page.split("```yaml\n", 1)[1].split("```", 1)[0]
    path = tmp_path / "example.yaml"
    path.write_text(f"name: example\nsource: {{sensors: [a]}}\n{example}", encoding="utf-8")
    found = load(path)
    assert found.combine is not None
    assert (found.combine.method, found.combine.weights) == ("mean", {"spread": 0.5})


def test_every_problem_is_reported_at_once_with_line_place_and_remedy(tmp_path: Path) -> None:
    text = """\
name: Pumps!
sorce: {}
source:
  sensors: [a, {name: b, minimum: 9, maximum: 1}]
  max_batch: none
  linger: 5 parsecs
detectors:
  spike:
    kind: adaptive_z
    warmpu: 100
  tree: {kind: half_space_tree}
  odd: {}
  both: {kind: adaptive_z, model: models:/x@y}
  batch: {model: "models/x"}
  fit: {model: models:/x@y, fit: {kind: pcb}}
  adaptive: {kind: adaptive_z, half_life: -3}
alert: {hold: 0}
"""
    found = problems(tmp_path, text)
    expected = [
        ':2: sorce: unknown setting "sorce". Did you mean "source"?',
        ":4: source.sensors.1.minimum: must be below maximum",
        ":5: source.max_batch: Expected int, got str",
        ':6: source.linger: expected a number of seconds, or such as 500ms, 30s, 10m, 12h or 7d; found "5 par',
        ':1: name: "Pumps!" must be lower-case letters',
        ':10: detectors.spike.warmpu: unknown setting "warmpu". Did you mean "warmup"?',
        ':11: detectors.tree.kind: unknown kind "half_space_tree". Did you mean "half_space_trees"?',
        ":12: detectors.odd: say exactly one of kind:",
        ":13: detectors.both: say exactly one of kind:",
        ':14: detectors.batch.model: "models/x" is not a model address',
        ':15: detectors.fit.fit.kind: unknown kind "pcb". Did you mean "pca"?',
        ":16: detectors.adaptive.half_life: Expected float > 0.0",
        ":17: alert.hold: Expected int >= 1",
    ]
    for line in expected:
        assert any(item.startswith(line) for item in found), f"{line} not in {found}"
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": expected settings (a mapping), found nothing"),
        ("[1]", ": expected settings (a mapping), found a list"),
        ("a: b: c", ":1: is not valid YAML"),
        ("name: x\nsource: &a {sensors: *a}\n", "refers to itself"),
        (
            "name: x\nname: y\nsource: {sensors: [a]}\ndetectors: {d: {kind: adaptive_z}}",
            ":2: name: is written twice",
        ),
        ("source: {sensors: [a]}\ndetectors: {d: {kind: adaptive_z}}", 'the setting "name" is missing'),
        ("name: x\nsource: {sensors: []}\ndetectors: {d: {kind: adaptive_z}}", "name at least one sensor"),
        ("name: x\nsource: {sensors: [a, a]}\ndetectors: {d: {kind: adaptive_z}}", "named twice: a"),
        ("name: x\nsource: {sensors: [a]}\ndetectors: {}", "declare at least one detector"),
        (
            "name: X\nsource: {sensors: [a]}\ndetectors: {d: {kind: adaptive_z}}",
            'name: "X" must be lower-case',
        ),
        (
            "name: x\nsource: {sensors: [a], layout: narrow}\ndetectors: {d: {kind: adaptive_z}}",
            'the narrow layout needs "{sensor}"',
        ),
        ("name: x\nsource: {sensors: [a]}\ndetectors: {d: {river: HalfSpaceTree}}", "HalfSpaceTrees"),
    ],
)
def test_problem_says_what_and_where(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(tmp_path, text))


def test_no_problem_hides_behind_another(tmp_path: Path) -> None:
    text = """\
name: A b
source:
  sensors: [a, a]
  bindings: []
  earliest: yesterday
  layout: wide
  routing_key: sensor.{machin}.*
detectors:
  spike: {kind: adaptive_z, threshold: .nan}
  bad name/x: {kind: adaptive_z, threshold: .inf}
  forest: {kind: isolation_forest}
alert: {cooldown: -5, severities: {warning: 2}}
sink: {exchange: mmlw.sensors}
"""
    expected = [
        ':1: name: "A b" must be',
        ":3: source.sensors: named twice: a",
        ":4: source.bindings: name at least one",
        ':5: source.earliest: "yesterday" is not an RFC 3339 time',
        ':6: source.layout: expected one of auto, narrow; found "wide"',
        ':7: source.routing_key: "{machin}" is not known',
        ":9: detectors.spike.threshold: expected a finite number",
        ":10: detectors.bad name/x.threshold: expected a finite number",
        ':8: detectors: "bad name/x" must be',
        ':11: detectors.forest.kind: unknown kind "isolation_forest". It is trained: write model:',
        ":12: alert.cooldown: Expected float >= 0.0",
        ":12: alert.severities: write them lowest first",
    ]
    found = problems(tmp_path, text)
    for line in expected:
        assert any(item.startswith(line) for item in found), f"{line} not in {found}"
    assert len(found) == len(expected)


def test_alerts_may_not_be_read_as_readings(tmp_path: Path) -> None:
    text = "name: x\nsource: {sensors: [a]}\ndetectors: {d: {kind: adaptive_z}}\nsink: {exchange: mmlw.sensors}\n"
    assert problems(tmp_path, text) == [
        ':4: sink: its exchange "mmlw.sensors" is the source\'s; alerts would be read as readings'
    ]


def test_folder_is_no_topology(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)


def test_python_topology_is_checked_as_strictly_as_yaml(tmp_path: Path) -> None:
    text = PYTHON.replace("half_life=500", "half_life=-1").replace("hold=2", "hold=0")
    found = problems(tmp_path, text, "t.py")
    assert any("detectors.spike.half_life" in problem for problem in found)
    assert any("alert.hold" in problem for problem in found)


def test_python_file_that_cannot_be_used_is_one_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, "1 / 0", "t.py") == [": could not be run: ZeroDivisionError: division by zero"]
    assert "defines no Topology" in problems(tmp_path, "x = 1", "t.py")[0]


def test_missing_file_suggests_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "pumps.yaml").write_text(YAML)
    with pytest.raises(ConfigError, match=r'no such file. Did you mean "pumps.yaml"'):
        load(tmp_path / "pump.yaml")


def test_graph_names_every_part() -> None:
    topology = Topology(
        name="x",
        source=Source(sensors=(Sensor("a"),)),
        detectors={
            "online": registry.ONLINE["adaptive_z"](),
            "batch": RegistryModel(model="models:/m@champion"),
        },
        alert=AlertRule(hold=2),
    )
    text = mermaid(topology)
    for part in (
        "flowchart LR",
        "mmlw.sensors",
        "online",
        "models:/m@champion",
        "open after 2",
        "mmlw.alerts",
    ):
        assert part in text


BARE = "name: p\nsource: {sensors: [a]}\n"
PAIR = (
    "name: p\nsource: {sensors: [a]}\ncalibration: {method: evt}\n"
    "detectors: {x: {kind: adaptive_z}, y: {kind: adaptive_z}}\n"
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            f"{BARE}detectors: autom",
            ':3: detectors: must be a mapping of names, or the word auto; found "autom". Did you mean "auto"?',
        ),
        (
            f"{BARE}detectors: [adaptive_z]",
            ":3: detectors: must be a mapping of names, or the word auto; found a list",
        ),
        (
            f"{BARE}detectors: 7",
            ":3: detectors: must be a mapping of names, or the word auto; found a number",
        ),
        (f"{BARE}detectors:", ":3: detectors: must be a mapping of names, or the word auto; found nothing"),
        (f"{BARE}detectors: auto\nfeatures: [a]", ":4: features: must be a mapping of names, found a list"),
        (
            f"{PAIR}combine: {{weights: [1, 2]}}",
            ":5: combine.weights: must be a mapping of names, found a list",
        ),
        (
            f"{PAIR}combine: {{k: 3}}",
            ":5: combine: k: is 3, and there are 2 detectors; make it 2 or less",
        ),
        (
            f"{BARE}detectors: {{x: {{kind: adaptive_z}}}}\ncalibration: {{method: conformal}}",
            ":1: alert: probability, where none is stated, is 0.0001, and conformal calibration tells none below one "
            "in 1,001 (calibration.history); let history be 10,000 or more, or calibrate by method: evt",
        ),
        (
            f"{BARE}detectors: {{x: {{kind: adaptive_z}}}}\ncalibration: {{method: conformal, history: 5000}}\n"
            "alert: {probability: 0.00001}",
            ":5: alert: probability is 1e-05, and conformal calibration tells none below one in 5,001 "
            "(calibration.history); let history be 100,000 or more, or calibrate by method: evt",
        ),
        (
            f"{PAIR}combine: {{weights: {{x: 0, y: 0}}}}",
            ":5: combine: weights: all are 0; give at least one detector a weight above 0",
        ),
    ],
)
def test_what_is_no_topology_is_one_clear_line(tmp_path: Path, text: str, told: str) -> None:
    assert problems(tmp_path, text) == [told]


def test_weight_of_0_for_one_detector_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(f"{PAIR}combine: {{weights: {{x: 0}}}}")
    assert load(tmp_path / "t.yaml").name == "p"


def test_watchdog_of_0_is_refused(tmp_path: Path) -> None:
    [told] = problems(tmp_path, f"{BARE}detectors: auto\nwatchdog: 0")
    assert told.startswith(":4: watchdog: must be above 0")


def nested(levels: int) -> str:
    """Aliases of aliases: ten values, ten times each level."""
    lines = [f"a0: &a0 [{', '.join('x' * 10)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("last", ["", "\n<<: [*a11, *a11]"])
def test_aliases_that_stand_for_too_much_are_refused(tmp_path: Path, last: str) -> None:
    [told] = problems(tmp_path, f"{nested(12)}{last}")
    assert told == ":5: aliases (*name) repeat more than 100,000 values; write out what is needed"


def test_aliases_that_stand_for_little_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(f"{BARE}detectors:\n  x: &x {{kind: adaptive_z}}\n  y: *x\n")
    detectors = load(tmp_path / "t.yaml").detectors
    assert detectors["x"] == detectors["y"]


def test_file_that_contains_itself_is_refused(tmp_path: Path) -> None:
    [told] = problems(tmp_path, "name: &n {a: *n}")
    assert told == ":1: refers to itself"


def test_nothing_hides_behind_another_problem_and_all_come_in_the_files_order(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "name: bad\n"
        "source:\n"
        "  sensors:\n"
        "    - {name: a, unt: bar}\n"
        "    - {name: b, minimum: 3, maximum: 1}\n"
        "    - c\n"
        "detectors:\n"
        "  hst: {kind: half_space_trees, inputs: [nope]}\n"
        "  z: {kind: adaptive_z, warmpu: 3}\n"
        "alert: {holdd: 3}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "bad.yaml")
    told = [(problem.place.partition("bad.yaml:")[2], problem.message) for problem in caught.value.problems]
    assert [place.partition(":")[0] for place, _ in told] == ["4", "5", "8", "9", "10"]
    assert '"nope" is neither a sensor nor a feature' in told[2][1]
    twice = (tmp_path / "bad.yaml").read_text().replace("- c", "- a")
    (tmp_path / "bad.yaml").write_text(twice)
    with pytest.raises(ConfigError, match="named twice: a"):
        load(tmp_path / "bad.yaml")
