"""The stream processor: topologies, brokers, engine, alerts, checkpoint, control."""
