"""Per-image decisions as saved time: plans, the executor that runs them, calibration."""
