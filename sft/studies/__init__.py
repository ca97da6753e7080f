"""Studies on SFT that publish no model."""
