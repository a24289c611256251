"""Scores with intervals, calibration, paired comparisons and floors, all read from Predictions."""
