"""Studies of what ratings are worth: influence of labelers, forecasts, selection."""
