"""Several pumps of one type: one trained model serves them all, each keeps its own online state.

Train it:    mmlw train topologies/pump_line.py --input history.csv
Run it:      mmlw run topologies/pump_line.py --broker amqp://guest:guest@localhost
"""

from detectors import PCA, AdaptiveZ
from stream.rules import AlertRule
from stream.topology import RegistryModel, Sensor, Source, Topology

topology = Topology(
    name="pump_line",
    description="A line of pumps of one type sharing one batch model; every pump learns its own normal state.",
    source=Source(
        bindings=("sensor.*.readings",),
        sensors=(
            Sensor("pressure_bar", unit="bar", minimum=0, maximum=40),
            Sensor("flow_l_min", unit="l/min", minimum=0, maximum=2000),
            Sensor("vibration_mm_s", unit="mm/s", minimum=0, maximum=100),
            Sensor("temperature_c", unit="°C", minimum=-40, maximum=200),
        ),
        missing_sensor="accept",
    ),
    detectors={
        "own": AdaptiveZ(half_life=500, warmup=100),
        "type": RegistryModel(model="models:/pump-pca@champion", fit=PCA()),
    },
    alert=AlertRule(hold=3, close_after=10, cooldown=60),
)
