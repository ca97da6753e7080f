"""The shared floor of the suite: configs, data, models, registry, tracking. It knows no stage."""
