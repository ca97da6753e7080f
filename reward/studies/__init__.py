"""Studies on reward models that publish no model."""
