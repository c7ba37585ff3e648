"""Make up for what was removed, from unlabelled calibration data."""
